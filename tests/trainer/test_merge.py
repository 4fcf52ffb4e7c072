"""Merging against W + (alpha / r) B A computed by hand, and the check that guards it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer import support
from trainer.support import artifact_path
from tunesmith.training.plan import MergePlan, TrainPlan
from tunesmith_trainer import merge as merging
from tunesmith_trainer.errors import CheckFailed, ModelError
from tunesmith_trainer.merge import merge
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


def merge_plan(tiny: Path, store: Path, adapters: list[dict[str, str]], **more: Any) -> MergePlan:
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
    save = merging.save_model

    def corrupt(model: Any, base: Any, dtype: Any, folder: Path) -> None:
        model.model.layers[1].mlp.down_proj.weight.data[:, :8] *= -1
        save(model, base, dtype, folder)

    monkeypatch.setattr(merging, "save_model", corrupt)
    with pytest.raises(CheckFailed, match=r"differ from base \+ adapters by 0\.\d+ .* spec.check.tolerance 0.02"):
        merge(merge_plan(tiny, tmp_path / "store", adapters[:1]))
    assert not list((tmp_path / "store" / "models").iterdir())


def test_a_merge_that_changes_nothing_fails_the_check(
    tiny: Path, tmp_path: Path, adapters: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(model: Any, base: Any, dtype: Any, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        AutoModelForCausalLM.from_pretrained(tiny).save_pretrained(folder)

    monkeypatch.setattr(merging, "save_model", forget)
    with pytest.raises(CheckFailed):
        merge(merge_plan(tiny, tmp_path / "store", adapters[:1]))


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
    (bad / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3"}))
    refuse(bad, "IA3; only LoRA adapters are merged")
