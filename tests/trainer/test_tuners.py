"""Tuners: each is really on, learns, and its artefact on the untouched base is the trained model, merged or not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from trainer.support import artifact_path, losses
from trainer.test_merge import merge_plan
from tunesmith.api.tuner import PeftType
from tunesmith.training.architecture import facts
from tunesmith.training.plan import TrainPlan
from tunesmith.training.report import Ending
from tunesmith.training.trainable import trained as number_trained
from tunesmith_trainer import adapters, artifact, lifecycle
from tunesmith_trainer.errors import ConfigError
from tunesmith_trainer.merge import merge
from tunesmith_trainer.train import train

# Of PEFT and of optimizers about themselves.
OWN_WARNINGS = (
    "PiSSA changes the base weights",
    "Could not find a config file",
    "Adapter '",
    "The following rank_pattern keys",
    "Failed to load the CUDA extension",
    "Setting boft_n",
    "Unsupported layer type",
    "Sparse invariant checks",
    "This implementation of AdamW",
)
pytestmark = [pytest.mark.trainer, *(pytest.mark.filterwarnings(f"ignore:{one}") for one in OWN_WARNINGS)]

Make = Callable[..., TrainPlan]
IDS = [[5, 17, 40, 99, 120, 7, 31, 64]]
LORA: dict[str, Any] = {"type": "LoRA", "rank": 4, "alpha": 16, "dropout": 0.0}
FEW = {"target_modules": ["q_proj", "down_proj"]}
VARIANTS: dict[str, dict[str, Any]] = {
    "DoRA": {**LORA, "dora": True},
    "rsLoRA": {**LORA, "rs_lora": True},
    "PiSSA": {**LORA, "initialization": "PiSSA"},
    "PiSSA, rsLoRA": {**LORA, "initialization": "PiSSA", "rs_lora": True},
    "biases": {**LORA, "bias": "All"},
    "own biases": {**LORA, "bias": "AdaptersOnly", **FEW},
    "embeddings": {**LORA, **FEW, "modules_to_save": ["embed_tokens"]},
    "norms": {**LORA, "modules_to_save": ["norm"]},
    "pattern": {**LORA, "target_pattern": r".*layers\.1\..*\.(q|v)_proj"},
}
# What a model this small needs, or what makes a few steps of it visible.
OPTIONS: dict[PeftType, dict[str, Any]] = {
    "AdaLoRA": {"init_r": 8, "target_r": 4, "tinit": 1, "tfinal": 2},
    "C3A": {"block_size": 16},
    "IA3": {"feedforward_modules": ["down_proj"]},
    "PrefixTuning": {"num_virtual_tokens": 4},
    "PromptTuning": {"num_virtual_tokens": 4},
    "PTuning": {"num_virtual_tokens": 4, "encoder_hidden_size": 32},
    "SHiRA": {"r": 8},
    "VBLoRA": {"vector_length": 32, "num_vectors": 16},
}
PROMPTS = ("PrefixTuning", "PromptTuning", "PTuning")


def peft(kind: str, **more: Any) -> dict[str, Any]:
    own = {"target_modules": ["q_proj", "v_proj", "down_proj"]} if kind == "IA3" else {}
    return {"type": "PEFT", "peft": {"type": kind, "options": OPTIONS.get(kind, {}) | more}, **own}  # type: ignore[call-overload]


class Seen:
    """What the trained model was when it was saved."""

    model: Any
    logits: Any
    state: dict[str, Any]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Looks at the model before its adapter is saved."""
    found, save = Seen(), artifact.save_adapter

    def look(model: Any, *rest: Any) -> None:
        found.model, found.logits = model, logits(model)
        found.state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        save(model, *rest)

    monkeypatch.setattr(artifact, "save_adapter", look)
    return found


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(IDS)).logits.clone()


def error(found: Any, wanted: Any) -> float:
    return float((found - wanted).norm() / wanted.norm())


def base(tiny: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny)


def learned(plan: TrainPlan, tiny: Path, seen: Seen) -> tuple[Ending, Path]:
    """Train; see that the loss fell, that weights of the base are what they were, and that plain PEFT gives the trained
    model from the artefact and the base's files.
    """
    from peft import PeftModel

    ending = train(plan)
    folder = artifact_path(plan, ending)
    assert losses(plan)[-1] < losses(plan)[0]
    again = PeftModel.from_pretrained(base(tiny), str(folder))
    assert error(logits(again), seen.logits) < 1e-5
    assert error(logits(base(tiny)), seen.logits[:, -len(IDS[0]) :]) > 1e-3  # prompts come first
    return ending, folder


def merged(plan: TrainPlan, ending: Ending, tiny: Path, store: Path, seen: Seen) -> None:
    """Merge; see that the merged files alone give the trained model."""
    assert ending.artifact
    adapter = {"uri": ending.artifact.uri, "path": str(artifact_path(plan, ending))}
    again = merge_plan(tiny, store, [adapter])
    done = merge(again)
    assert error(logits(base(artifact_path(again, done))), seen.logits) < 1e-4


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_of_lora_is_on_learns_and_merges(
    make_plan: Make, tiny: Path, tmp_path: Path, seen: Seen, name: str
) -> None:
    import torch
    from safetensors.torch import load_file

    plan = make_plan(tuner=VARIANTS[name], max_steps=4, learning_rate=1e-2)
    ending, folder = learned(plan, tiny, seen)
    layer = seen.model.base_model.model.model.layers[1].self_attn.q_proj
    config = json.loads((folder / "adapter_config.json").read_text())
    before, stored = load_file(tiny / "model.safetensors"), load_file(folder / "adapter_model.safetensors")
    match name:
        case "DoRA":
            moved = layer.lora_magnitude_vector["default"].weight
            norms = before["model.layers.1.self_attn.q_proj.weight"].norm(dim=1)
            assert moved.shape == norms.shape
            assert (moved - norms).abs().max() > 1e-3
        case "rsLoRA":
            assert layer.scaling["default"] == pytest.approx(16 / math.sqrt(4))
        case "PiSSA" | "PiSSA, rsLoRA":
            assert config["r"] == 8
            assert config["init_lora_weights"] is True
            # The base that it was trained over lacked the largest singular values.
            weight = before["model.layers.1.self_attn.q_proj.weight"]
            u, s, v = torch.linalg.svd(weight)
            assert torch.allclose(layer.base_layer.weight, (u[:, 4:] * s[4:]) @ v[4:], atol=1e-4)
        case "biases" | "own biases":
            names = {key.replace(".base_layer", "").split(".")[-2] for key in stored if key.endswith(".bias")}
            assert names == ({"q_proj"} if name == "own biases" else {"q_proj", "k_proj", "v_proj"}), names
        case "embeddings":
            [key] = [key for key in stored if "embed_tokens" in key]
            assert not torch.allclose(stored[key], before["model.embed_tokens.weight"], atol=1e-3)
            head = seen.model.base_model.model.get_output_embeddings()
            assert torch.equal(head.weight, seen.model.base_model.model.get_input_embeddings().weight)
        case "norms":
            assert any(key.endswith("model.norm.weight") for key in stored)
        case "pattern":
            owners = {key.split(".lora_")[0].removeprefix("base_model.model.") for key in stored}
            assert owners == {f"model.layers.1.self_attn.{part}_proj" for part in "qv"}
    found, reason = facts(json.loads((tiny / "config.json").read_text()))
    assert found, reason
    count = sum(parameter.numel() for parameter in seen.model.parameters() if parameter.requires_grad)
    if name == "pattern":  # counts as all modules
        assert number_trained(plan, found) >= count
    else:
        assert number_trained(plan, found) == pytest.approx(count, rel=0.1)
    merged(plan, ending, tiny, tmp_path / "store", seen)


@pytest.mark.parametrize("kind", get_args(PeftType))
def test_each_kind_of_peft_learns_and_its_artefact_is_the_trained_model(
    make_plan: Make, tiny: Path, tmp_path: Path, seen: Seen, kind: PeftType
) -> None:
    plan = make_plan(tuner=peft(kind), max_steps=6, learning_rate=2e-2)
    ending, folder = learned(plan, tiny, seen)
    assert type(seen.model.peft_config["default"]).__name__ == adapters.CLASSES[kind]
    trained = [name for name, parameter in seen.model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(any(mark in name for mark in adapters.marks(seen.model)) for name in trained)
    if kind == "AdaLoRA":  # ranks were shared out: on average the target, in some modules less, in others more
        ranks = json.loads((folder / "adapter_config.json").read_text())["rank_pattern"]
        kept = [sum(pattern) for pattern in ranks.values()]
        assert sum(kept) == 4 * len(kept)
        assert len(set(kept)) > 1
    found, reason = facts(json.loads((tiny / "config.json").read_text()))
    assert found, reason
    count = sum(parameter.numel() for parameter in seen.model.parameters() if parameter.requires_grad)
    assert 0.95 * count <= number_trained(plan, found) <= 4 * count + 3000, (count, number_trained(plan, found))
    if kind not in PROMPTS:
        merged(plan, ending, tiny, tmp_path / "store", seen)


def test_lora_plus_gives_b_a_learning_rate_of_its_own(make_plan: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: dict[float, set[str]] = {}
    create = lifecycle.Lifecycle.create_optimizer

    def look(self: Any, model: Any = None) -> Any:
        optimizer = create(self, model)
        names = {id(p): name for name, p in self.model.named_parameters()}
        for group in optimizer.param_groups:
            groups.setdefault(group["lr"], set()).update(names[id(p)].split(".")[-3] for p in group["params"])
        return optimizer

    monkeypatch.setattr(lifecycle.Lifecycle, "create_optimizer", look)
    train(make_plan(tuner={**LORA, "lora_plus_ratio": 16.0}, learning_rate=1e-3))
    assert groups == {1e-3: {"lora_A"}, 16e-3: {"lora_B"}}


@pytest.mark.parametrize(
    ("tuner", "wanted"),
    [
        ({"last_layers": 1}, {"model.layers.1."}),
        ({"trainable_pattern": "layernorm|^model.norm"}, {"layernorm.weight", "model.norm.weight"}),
        ({"last_layers": 1, "trainable_pattern": "embed_tokens"}, {"model.layers.1.", "embed_tokens"}),
    ],
)
def test_full_trains_what_it_is_told_to_and_nothing_else(
    make_plan: Make, tiny: Path, tuner: dict[str, Any], wanted: set[str]
) -> None:
    from safetensors.torch import load_file

    plan = make_plan(tuner={"type": "Full", **tuner}, max_steps=2)
    after = load_file(artifact_path(plan, train(plan)) / "model.safetensors")
    before = load_file(tiny / "model.safetensors")
    changed = {name for name, tensor in before.items() if not tensor.equal(after[name])}
    assert changed == {name for name in before if any(part in name for part in wanted)}


@pytest.mark.parametrize("name", ["AdamW8bit", "Adafactor", "GaLore", "APOLLO"])
def test_an_optimizer_is_the_one_asked_for_and_learns(
    make_plan: Make, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    made: list[Any] = []
    create = lifecycle.Lifecycle.create_optimizer
    monkeypatch.setattr(lifecycle.Lifecycle, "create_optimizer", lambda *them: made.append(create(*them)) or made[-1])
    plan = make_plan(tuner={"type": "Full"}, max_steps=4, optimizer=name, learning_rate=1e-3)
    train(plan)
    assert losses(plan)[-1] < losses(plan)[0]
    kind = {"AdamW8bit": "AdamW", "Adafactor": "Adafactor", "GaLore": "AdamW", "APOLLO": "AdamW"}[name]
    assert type(made[0]).__name__ == kind
    package = {"AdamW8bit": "bitsandbytes", "Adafactor": "transformers", "GaLore": "galore_torch"}
    assert type(made[0]).__module__.split(".")[0] == package.get(name, "apollo_torch")


@pytest.mark.parametrize(
    ("tuner", "message"),
    [
        (peft("OFT", block=4), "OFT takes no block; choose of .*oft_block_size"),
        (peft("OFT", target_modules=["q_proj"]), "OFT takes no target_modules"),
        (peft("C3A", block_size=48), "spec.tuner.peft: .*block size.*linear modules: .*q_proj"),
        ({**peft("PromptTuning"), "target_modules": ["q_proj"]}, "targetModules: PromptTuning has none"),
        (peft("AdaLoRA", tinit=3, tfinal=3), "leave none of the 4 steps"),
        ({**LORA, "target_pattern": "("}, "targetPattern: it is no regular expression"),
        ({**LORA, "target_pattern": "q_proj"}, "no module's whole name matches 'q_proj'; names are like model"),
        ({**LORA, "modules_to_save": ["wte"]}, "modulesToSave: the model has no module wte"),
        ({"type": "Full", "last_layers": 3}, "lastLayers: 3, but the model has 2"),
        ({"type": "Full", "trainable_pattern": "wte"}, "trainablePattern: no parameter matches 'wte'"),
    ],
)
def test_what_a_tuner_cannot_do_is_refused(make_plan: Make, tuner: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(make_plan(tuner=tuner, max_steps=4))
