"""Merging against W + (alpha / r) B A computed by hand, and the check that guards it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer import support
from trainer.support import CHATML, artifact_path
from tunesmith.training.plan import InferencePlan, MergePlan, Place, QuantizationPlan, TrainPlan
from tunesmith_trainer import merge as merging
from tunesmith_trainer import streaming
from tunesmith_trainer.chat import DEFAULT
from tunesmith_trainer.errors import CheckFailed, ConfigError, ModelError
from tunesmith_trainer.infer import data
from tunesmith_trainer.infer.answering import prompt_of
from tunesmith_trainer.infer.subject import find, load, planned
from tunesmith_trainer.local.addresses import Here
from tunesmith_trainer.merge import merge
from tunesmith_trainer.model import load_tokenizer
from tunesmith_trainer.train import train

pytestmark = pytest.mark.trainer

Make = Callable[..., TrainPlan]


@pytest.fixture(scope="module")
def adapters(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Two adapters, of LoRA and of QLoRA, trained enough to matter."""
    tuners = [
        {"type": "LoRA", "rank": 4, "alpha": 16, "dropout": 0.1},
        {"type": "QLoRA", "rank": 2, "alpha": 8, "dropout": 0.0, "quantization": "NF4"},
    ]
    places, folder = [], tmp_path_factory.mktemp("adapters")
    for index, tuner in enumerate(tuners):
        plan = support.make_plan(folder, tiny, run=f"adapter{index}", tuner=tuner, max_steps=4, learning_rate=3e-2)
        ending = train(plan)
        assert ending.artifact
        places.append({"uri": ending.artifact.uri, "path": str(artifact_path(plan, ending))})
    return places


@pytest.fixture(scope="module")
def same_rank(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Another adapter of the first one's rank."""
    folder = tmp_path_factory.mktemp("same-rank")
    tuner = {"type": "LoRA", "rank": 4, "alpha": 8, "dropout": 0.0}
    plan = support.make_plan(folder, tiny, run="same", tuner=tuner, max_steps=4, learning_rate=5e-2)
    ending = train(plan)
    assert ending.artifact
    return {"uri": ending.artifact.uri, "path": str(artifact_path(plan, ending))}


def merge_plan(tiny: Path, store: Path, adapters: list[Any], **more: Any) -> MergePlan:
    """A plan that merges `adapters` into the tiny model."""
    return MergePlan.model_validate(
        {
            "job": {"namespace": "test", "name": "m", "uid": "uid-m"},
            "model": {"uri": "pvc://models/tiny", "path": str(tiny)},
            "adapters": adapters,
            "dtype": "Auto",
            "tolerance": 0.02,
            "output": {"uri": "pvc://store", "path": str(store), "run": str(store / "jobs" / "m")},
        }
        | more
    )


def merged_by_hand(tiny: Path, adapters: list[dict[str, str]]) -> dict[str, Any]:
    """The base's weights, each with the sum of (alpha / r) B A of the adapters added."""
    from safetensors.torch import load_file

    weights = load_file(tiny / "model.safetensors")
    for adapter in adapters:
        config = json.loads((Path(adapter["path"]) / "adapter_config.json").read_text())
        tensors = load_file(Path(adapter["path"]) / "adapter_model.safetensors")
        for key, a in tensors.items():
            if key.endswith("lora_A.weight"):
                b = tensors[key.replace("lora_A", "lora_B")]
                name = key.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
                weights[name] = weights[name] + config["lora_alpha"] / config["r"] * (b @ a)
    return weights


def deltas(adapters: list[dict[str, Any]]) -> list[dict[str, tuple[Any, Any, float]]]:
    """Of each adapter, by weight's name: A, B and alpha / r."""
    from safetensors.torch import load_file

    result = []
    for adapter in adapters:
        config = json.loads((Path(adapter["path"]) / "adapter_config.json").read_text())
        tensors = load_file(Path(adapter["path"]) / "adapter_model.safetensors")
        scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
        result.append(
            {
                key.removeprefix("base_model.model.").replace("lora_A.weight", "weight"): (
                    a,
                    tensors[key.replace("lora_A", "lora_B")],
                    scale,
                )
                for key, a in tensors.items()
                if key.endswith("lora_A.weight")
            }
        )
    return result


def ties(values: list[Any], density: float) -> Any:
    """TIES by the paper: keep the largest, elect the sign of the larger mass, sum what has it."""
    import torch

    kept = []
    for value in values:
        flat = value.flatten()
        few = torch.zeros_like(flat)
        top = flat.abs().topk(int(density * flat.numel())).indices
        few[top] = flat[top]
        kept.append(few.reshape(value.shape))
    stacked = torch.stack(kept)
    sign = torch.where(stacked.sum(0) >= 0, 1.0, -1.0)
    agrees = (torch.sign(stacked) == sign) & (stacked != 0)
    return (stacked * agrees).sum(0) / agrees.sum(0).clamp(min=1)


@pytest.mark.parametrize("method", ["Cat", "Linear", "TIES"])
def test_weighted_combinations_equal_those_by_hand(
    tiny: Path, tmp_path: Path, adapters: list[dict[str, str]], same_rank: dict[str, str], method: str
) -> None:
    import torch
    from safetensors.torch import load_file

    given: list[dict[str, Any]] = [{**adapters[0], "weight": 0.5}, {**same_rank, "weight": 2.0}]
    combine = {"method": method, **({"density": 0.4} if method == "TIES" else {})}
    plan = merge_plan(tiny, tmp_path / "store", given, combine=combine)
    ending = merge(plan)
    found = load_file(artifact_path(plan, ending) / "model.safetensors")
    expected, (one, two) = load_file(tiny / "model.safetensors"), deltas(given)
    for name, (a1, b1, s1) in one.items():
        a2, b2, s2 = two[name]
        if method == "Cat":
            update = 0.5 * s1 * (b1 @ a1) + 2.0 * s2 * (b2 @ a2)
        else:
            roots = [(0.5 * s1) ** 0.5, (2.0 * s2) ** 0.5]
            pairs = [[roots[0] * a1, roots[1] * a2], [roots[0] * b1, roots[1] * b2]]
            a, b = [ties(p, 0.4) for p in pairs] if method == "TIES" else [p[0] + p[1] for p in pairs]
            update = b @ a
        expected[name] = expected[name] + update
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-5), name
    assert ending.logit_error is not None
    assert ending.logit_error < 1e-4


def trained(folder: Path, tiny: Path, **tuner: Any) -> dict[str, str]:
    """An adapter of such a tuner, trained enough to matter."""
    lora = {"type": "LoRA", "rank": 4, "alpha": 16, "dropout": 0.0}
    plan = support.make_plan(folder, tiny, run="-".join(tuner), tuner=lora | tuner, max_steps=4, learning_rate=3e-2)
    ending = train(plan)
    assert ending.artifact
    return {"uri": ending.artifact.uri, "path": str(artifact_path(plan, ending))}


@pytest.mark.parametrize("others", [0, 1])
def test_a_rank_stabilised_adapter_keeps_its_own_scale_where_it_is_weighted_or_combined(
    tiny: Path, tmp_path: Path, adapters: list[dict[str, str]], others: int
) -> None:
    import torch
    from safetensors.torch import load_file

    stabilised = trained(tmp_path, tiny, rs_lora=True)
    given: list[dict[str, Any]] = [{**stabilised, "weight": 0.5}, *adapters[:others]]
    plan = merge_plan(tiny, tmp_path / "store", given)
    found = load_file(artifact_path(plan, merge(plan)) / "model.safetensors")
    expected = load_file(tiny / "model.safetensors")
    for weight, one in zip((0.5, 1.0), deltas(given), strict=False):
        for name, (a, b, scale) in one.items():
            expected[name] = expected[name] + weight * scale * (b @ a)
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-5), name


@pytest.mark.parametrize(
    ("tuner", "what"),
    [({"modules_to_save": ["norm"]}, "whole modules"), ({"bias": "AdaptersOnly"}, "biases")],
    ids=["modules", "biases"],
)
def test_what_an_adapter_has_beside_products_is_merged_or_refused_but_never_left_out(
    tiny: Path, tmp_path: Path, adapters: list[dict[str, str]], tuner: dict[str, Any], what: str
) -> None:
    import torch
    from safetensors.torch import load_file

    more = trained(tmp_path, tiny, **tuner)
    for given in ([{**more, "weight": 0.5}], [more, adapters[0]], [adapters[0], more]):
        with pytest.raises(ModelError, match=f"beside LoRA it has {what} in the place of the base's"):
            merge(merge_plan(tiny, tmp_path / "store", given))
    steps: list[dict[str, Any]] = [adapters[0], {**more, "step": 2}]
    plan = merge_plan(tiny, tmp_path / "store", steps)
    found = load_file(artifact_path(plan, merge(plan)) / "model.safetensors")
    stored = load_file(Path(more["path"]) / "adapter_model.safetensors")
    names = {name: name.removeprefix("base_model.model.").replace(".base_layer", "") for name in stored}
    own = {whole: stored[name] for name, whole in names.items() if "lora_" not in name}
    assert own
    with pytest.raises(ModelError, match=r"of several steps have whole modules|does not fit the base"):
        merge(merge_plan(tiny, tmp_path / "store", [more, {**more, "step": 2}]))
    assert all(torch.equal(found[name], tensor) for name, tensor in own.items())


def test_an_adapter_that_took_something_out_of_its_base_is_merged_into_what_was_left(
    tiny: Path, tmp_path: Path, adapters: list[dict[str, str]]
) -> None:
    """As PEFT saves a PiSSA that is not converted."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, lora_alpha=4, target_modules="all-linear", init_lora_weights="pissa")
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "pissa")
    adapter = {"uri": "pvc://c/pissa", "path": str(tmp_path / "pissa")}
    plan = merge_plan(tiny, tmp_path / "store", [adapter])
    merged = AutoModelForCausalLM.from_pretrained(artifact_path(plan, merge(plan)))
    with torch.no_grad():
        wanted, found = (one.eval()(torch.arange(10)[None]).logits for one in (model, merged))
    assert float((found - wanted).norm() / wanted.norm()) < 1e-4
    for given in ([{**adapter, "weight": 0.5}], [adapter, adapters[0]], [adapters[0], {**adapter, "step": 2}]):
        with pytest.raises(ModelError, match=r"it begins as pissa, .*: merge it alone, or convert it"):
            merge(merge_plan(tiny, tmp_path / "store", given))


@pytest.mark.filterwarnings("ignore:The density 1.0")  # it drops nothing, as asked
@pytest.mark.parametrize(("method", "like"), [("DARELinear", "Linear"), ("DARETIES", "TIES")])
def test_dare_that_drops_nothing_is_the_method_that_it_wraps_and_else_is_repeatable(
    tiny: Path, tmp_path: Path, adapters: list[dict[str, str]], same_rank: dict[str, str], method: str, like: str
) -> None:
    import torch
    from safetensors.torch import load_file

    def merged(name: str, density: float | None, folder: str) -> dict[str, Any]:
        combine = {"method": name, "density": density}
        plan = merge_plan(tiny, tmp_path / folder, [adapters[0], same_rank], combine=combine)
        return load_file(artifact_path(plan, merge(plan)) / "model.safetensors")

    whole, plain = merged(method, 1.0, "a"), merged(like, None if like == "Linear" else 1.0, "b")
    assert all(torch.allclose(whole[name], plain[name], atol=1e-5) for name in whole)
    first, second = merged(method, 0.5, "c"), merged(method, 0.5, "d")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.allclose(first[name], whole[name], atol=1e-4) for name in first)


def test_steps_add_up_and_a_later_one_may_come_from_what_an_earlier_made(
    tiny: Path, tmp_path: Path, make_plan: Make, adapters: list[dict[str, str]]
) -> None:
    import torch
    from safetensors.torch import load_file

    first = merge_plan(tiny, tmp_path / "store", adapters[:1])
    middle = artifact_path(first, merge(first))
    training = make_plan(run="second", model={"uri": "pvc://store/models/x", "path": str(middle)})
    second = artifact_path(training, train(training))
    chain = merge_plan(middle, tmp_path / "store", [{"uri": "pvc://c/2", "path": str(second)}])
    expected = load_file(artifact_path(chain, merge(chain)) / "model.safetensors")
    steps: list[dict[str, Any]] = [adapters[0], {"uri": "pvc://c/2", "path": str(second), "step": 2}]
    at_once = merge_plan(tiny, tmp_path / "store", steps)
    found = load_file(artifact_path(at_once, merge(at_once)) / "model.safetensors")
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)


def test_a_combination_that_cannot_be_is_refused(tiny: Path, tmp_path: Path, adapters: list[dict[str, str]]) -> None:
    with pytest.raises(ConfigError, match=r"spec.combine.method Linear: .*rank.*; Cat takes any ranks"):
        merge(merge_plan(tiny, tmp_path / "store", adapters, combine={"method": "Linear"}))


@pytest.mark.parametrize("count", [1, 2])
def test_merged_weights_and_logits_equal_the_sum_by_hand(
    tiny: Path, tmp_path: Path, tokenizer: Any, adapters: list[dict[str, str]], count: int
) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    plan = merge_plan(tiny, tmp_path / "store", adapters[:count])
    ending = merge(plan)
    folder = artifact_path(plan, ending)
    expected = merged_by_hand(tiny, adapters[:count])
    found = load_file(folder / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-6), name
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.allclose(found[name], load_file(tiny / "model.safetensors")[name], atol=1e-3)
    ids = tokenizer("who are you?", return_tensors="pt")["input_ids"]
    by_hand = AutoModelForCausalLM.from_pretrained(tiny)
    by_hand.load_state_dict(expected, strict=False)
    with torch.no_grad():
        assert torch.allclose(AutoModelForCausalLM.from_pretrained(folder)(ids).logits, by_hand(ids).logits, atol=1e-4)
    assert ending.logit_error is not None
    assert ending.logit_error < 1e-5
    assert (folder / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [adapter["uri"] for adapter in manifest["adapters"]] == [adapter["uri"] for adapter in adapters[:count]]


def test_the_chat_template_that_adapters_were_trained_with_comes_along(
    tiny: Path, tmp_path: Path, adapters: list[dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """As chatTemplate.type Default writes it beside the adapter. With the base's own, prompts would be others."""
    own = shutil.copytree(adapters[0]["path"], tmp_path / "own")
    (own / "chat_template.jinja").write_text(DEFAULT)
    place = {"uri": "pvc://store/own", "path": str(own)}
    folder = artifact_path(plan := merge_plan(tiny, tmp_path / "store", [place]), merge(plan))
    assert load_tokenizer(Place(uri="merged", path=str(folder))).chat_template == DEFAULT


def test_adapters_of_one_step_that_were_trained_with_different_templates_are_refused_and_a_step_chooses(
    tiny: Path, tmp_path: Path, adapters: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any weight is read. The same template under another name is none of these."""
    own = shutil.copytree(adapters[0]["path"], tmp_path / "own")
    (own / "chat_template.jinja").write_text(DEFAULT)
    place = {"uri": "pvc://store/own", "path": str(own)}
    with monkeypatch.context() as patch:
        patch.setattr(merging, "merge_files", None)
        message = (
            r"adapters\[0\] \S+ was trained with the base's own chat template, and adapters\[1\] pvc://store/own with "
            r"chatTemplate.type Default, .*: give the adapter whose template is to stay a higher step"
        )
        with pytest.raises(ConfigError, match=message):
            merge(merge_plan(tiny, tmp_path / "store", [adapters[1], place]))
    for first, second, kept in ((adapters[1], place, DEFAULT), (place, adapters[1], CHATML)):
        steps: list[dict[str, Any]] = [first, {**second, "step": 2}]
        folder = artifact_path(plan := merge_plan(tiny, tmp_path / "store", steps), merge(plan))
        assert load_tokenizer(Place(uri="merged", path=str(folder))).chat_template == kept
    (own / "chat_template.jinja").write_text(CHATML)
    assert merge(merge_plan(tiny, tmp_path / "store", [adapters[1], place])).artifact


def asked_with(
    place: dict[str, str], folder: Path, method: dict[str, Any] | None = None, **chat: Any
) -> dict[str, str]:
    """A copy of an adapter, of a training with such a chatTemplate."""
    shutil.copytree(place["path"], folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["plan"] |= {"chatTemplate": chat, **({"method": method} if method else {})}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return {"uri": f"pvc://store/{folder.name}", "path": str(folder)}


def test_a_merged_model_is_asked_as_its_adapter_was_trained(
    tiny: Path, tmp_path: Path, adapters: list[dict[str, str]]
) -> None:
    """By InferenceJobs and by hand, and the same when it is quantised."""
    chat = {"system": "hello world", "arguments": {"enable_thinking": False}}
    method = {"type": "ORPO", "orpo": {}}
    place = asked_with(adapters[0], tmp_path / "own", method, **chat)
    smaller = QuantizationPlan(method="FP8", tolerance=1)
    for quantization in (None, smaller):
        folder = artifact_path(
            plan := merge_plan(tiny, tmp_path / "store", [place], quantization=quantization), merge(plan)
        )
        asked = InferencePlan.model_validate(
            {
                **plan.model_dump(include={"job", "output"}),
                "model": {"uri": "pvc://store/merged", "path": str(folder)},
                "datasets": [], "batch_size": 1, "generation": {},
            }
        )  # fmt: skip
        for subject in (planned(asked), find(str(folder), Here(tmp_path))):
            found = subject.trained
            assert found.chat_template.model_dump(include=set(chat)) == chat
            assert (found.method.type, found.max_length) == ("ORPO", 128)
    loaded = load(subject)
    prompt = prompt_of(data.one("Generate", {"query": "who are you?"}), loaded)
    assert loaded.tokenizer.decode(prompt.ids).startswith("<|im_start|>system\nhello world<|im_end|>")


def test_what_adapters_of_the_last_step_differ_in_is_left_open_and_said(
    tiny: Path, tmp_path: Path, adapters: list[dict[str, str]]
) -> None:
    one = asked_with(adapters[0], tmp_path / "one", system="hello world", arguments={"enable_thinking": False})
    other = asked_with(adapters[1], tmp_path / "other", system="who?", arguments={"enable_thinking": False})
    unknown = asked_with(adapters[1], tmp_path / "unknown")
    (tmp_path / "unknown" / "manifest.json").unlink()

    def merged(store: str, *given: dict[str, Any]) -> tuple[str, Any]:
        plan = merge_plan(tiny, tmp_path / store, list(given))  # one store would keep the first manifest of a content
        ending = merge(plan)
        return ending.message, find(str(artifact_path(plan, ending)), Here(tmp_path)).trained.chat_template

    message, chat = merged("differing", one, other)
    assert "trained with different chatTemplate.system: an InferenceJob asks the model without" in message
    assert (chat.system, chat.arguments) == (None, {"enable_thinking": False})
    for given, system in (((one, unknown), "hello world"), ((one, {**other, "step": 2}), "who?")):
        message, chat = merged(system, *given)
        assert message == "merged 2 adapter(s)"
        assert chat.system == system


def test_rounding_to_bfloat16_is_part_of_the_error_and_the_dtype_is_as_asked(
    tiny: Path, tmp_path: Path, adapters: list[dict[str, str]]
) -> None:
    import torch
    from safetensors.torch import load_file

    plan = merge_plan(tiny, tmp_path / "store", adapters[:1], dtype="BFloat16")
    ending = merge(plan)
    assert ending.logit_error is not None
    assert 1e-4 < ending.logit_error < 0.02
    folder = artifact_path(plan, ending)
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_corrupted_merge_fails_the_check_and_publishes_nothing(
    tiny: Path, tmp_path: Path, adapters: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = streaming.write

    def corrupt(weights: Any, updates: Any, dtype: Any, source: Path, folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        write(weights, updates, dtype, source, folder)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.mlp.down_proj.weight"][:, :8] *= -1
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(streaming, "write", corrupt)
    with pytest.raises(CheckFailed, match=r"differ from base \+ adapters by 0\.\d+ .* spec.check.tolerance 0.02"):
        merge(merge_plan(tiny, tmp_path / "store", adapters[:1]))
    assert not list((tmp_path / "store" / "models").iterdir())


def test_a_merge_that_changes_nothing_fails_the_check(
    tiny: Path, tmp_path: Path, adapters: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(weights: Any, updates: Any, *rest: Any) -> None:
        write(weights, {}, *rest)

    write = streaming.write
    monkeypatch.setattr(streaming, "write", forget)
    with pytest.raises(CheckFailed):
        merge(merge_plan(tiny, tmp_path / "store", adapters[:1]))


def test_a_sharded_model_is_merged_shard_by_shard_and_is_what_the_whole_would_be(
    tiny: Path, tmp_path: Path, adapters: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    sharded = tmp_path / "sharded"
    AutoTokenizer.from_pretrained(tiny).save_pretrained(sharded)
    AutoModelForCausalLM.from_pretrained(tiny).save_pretrained(sharded, max_shard_size="60KB")
    files = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert len(files) > 3
    monkeypatch.setattr(merging, "merge_whole", None)
    monkeypatch.setattr(merging, "load_model", None)
    plan = merge_plan(sharded, tmp_path / "store", adapters, dtype="Float32")
    ending = merge(plan)
    folder = artifact_path(plan, ending)
    assert sorted(path.name for path in folder.glob("*.safetensors")) == files
    expected = merged_by_hand(tiny, adapters)
    found = {name: tensor for file in files for name, tensor in load_file(folder / file).items()}
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in found)
    assert AutoModelForCausalLM.from_pretrained(folder) is not None
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in found.values())
    assert ending.logit_error is not None
    assert ending.logit_error < 1e-5


PROGRAM = """
import json, sys, threading, time
from pathlib import Path
from tunesmith.training.plan import MergePlan
from tunesmith_trainer.merge import merge
import torch, transformers, peft  # before it is measured

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

before, peak, over = anonymous(), [0], threading.Event()

def watch():
    while not over.is_set():
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.005)

thread = threading.Thread(target=watch)
thread.start()
ending = merge(MergePlan.model_validate_json(Path(sys.argv[1]).read_text()))
over.set()
thread.join()
print(json.dumps({"held": peak[0] - before, "error": ending.logit_error}))
"""


@pytest.mark.long
def test_a_large_model_is_merged_in_a_fraction_of_its_size(tiny: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    large = tmp_path / "large"
    config = AutoConfig.from_pretrained(tiny)
    config.update({"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 24, "num_attention_heads": 8})
    config.update({"num_key_value_heads": 8, "head_dim": 64, "layer_types": ["full_attention"] * 24})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(large)
    model.save_pretrained(large, max_shard_size="20MB")
    size = sum(path.stat().st_size for path in large.glob("*.safetensors"))
    assert size > 300e6
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    del model, adapted
    plan = merge_plan(large, tmp_path / "store", [{"uri": "pvc://c/a", "path": str(tmp_path / "adapter")}])
    (tmp_path / "plan.json").write_text(plan.model_dump_json(by_alias=True))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "plan.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"\n{size / 1e6:.0f} MB merged and checked with {found['held'] / 1e6:.0f} MB held")
    assert found["held"] < size / 2
    assert found["error"] < 1e-4


def test_file_by_file_and_whole_give_the_same(
    tiny: Path, tmp_path: Path, adapters: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import load_file

    first = merge_plan(tiny, tmp_path / "a", adapters)
    by_file = merge(first)
    monkeypatch.setattr(merging, "merge_files", lambda *_: None)
    second = merge_plan(tiny, tmp_path / "b", adapters)
    whole = merge(second)
    one, two = (load_file(artifact_path(p, e) / "model.safetensors") for p, e in ((first, by_file), (second, whole)))
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[name], two[name], atol=1e-7) for name in one)
    assert by_file.logit_error == pytest.approx(whole.logit_error, abs=1e-6)


def test_an_adapter_that_is_missing_or_of_another_base_is_refused(tiny: Path, tmp_path: Path, make_plan: Make) -> None:
    from safetensors.torch import load_file, save_file

    training = make_plan(run="one")
    good = artifact_path(training, train(training))

    def refuse(folder: Path, match: str) -> None:
        with pytest.raises(ModelError, match=match):
            merge(merge_plan(tiny, tmp_path / "store", [{"uri": "pvc://c/a", "path": str(folder)}]))

    refuse(tmp_path / "no", r"adapters\[0\] pvc://c/a: there is no folder")
    bad = tmp_path / "bad"
    bad.mkdir()
    refuse(bad, r"no adapter_config.json and no adapter_model.safetensors; found \[\]")
    config = json.loads((good / "adapter_config.json").read_text())
    tensors = load_file(good / "adapter_model.safetensors")
    (bad / "adapter_config.json").write_text(json.dumps(config))
    save_file({key: tensor[:, :3].contiguous() for key, tensor in tensors.items()}, bad / "adapter_model.safetensors")
    refuse(bad, "pvc://c/a does not fit the base")
    save_file(dict(list(tensors.items())[:-1]), bad / "adapter_model.safetensors")
    refuse(bad, "pvc://c/a does not fit the base: 27 tensors stored, 28 places")
    (bad / "manifest.json").write_text(json.dumps({"base": {"digest": "sha256:1"}}))
    (tiny / "manifest.json").write_text(json.dumps({"digest": "sha256:2"}))
    try:
        refuse(bad, "trained from the base sha256:1, but spec.model pvc://models/tiny is sha256:2")
    finally:
        (tiny / "manifest.json").unlink()
    (bad / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "PROMPT_TUNING"}))
    refuse(bad, "PROMPT_TUNING, which is no change of weights")
