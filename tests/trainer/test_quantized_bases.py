"""LoRA over bases that are quantised already: it learns as over the weights they stand for, and merges into them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer.support import artifact_path, losses
from trainer.test_export import by_hand, place, plan_of
from tunesmith.training.plan import MergePlan, TrainPlan
from tunesmith_trainer.errors import ConfigError, ModelError
from tunesmith_trainer.export import export
from tunesmith_trainer.merge import merge
from tunesmith_trainer.model import check_files
from tunesmith_trainer.train import train

pytestmark = [
    pytest.mark.trainer,
    pytest.mark.filterwarnings("ignore:.*is an Enum subclass"),
]

LORA = {"type": "LoRA", "rank": 4, "alpha": 16, "dropout": 0.0}


def quantized(tiny: Path, folder: Path, method: str) -> Path:
    folder.mkdir()
    export(place(tiny), plan_of(method), folder)
    return folder


def stands_for(tiny: Path, folder: Path, method: str) -> Path:
    """A plain model with the weights that the quantised one stands for."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear) and layer is not model.get_output_embeddings():
            layer.weight.data = by_hand(layer.weight.data, method)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


def over(plan: TrainPlan, base: Path) -> TrainPlan:
    return plan.model_copy(update={"model": plan.model.model_copy(update={"path": str(base)})})


def learned(plan: TrainPlan) -> tuple[Path, dict[str, Any]]:
    """(adapter, its tensors) of a training that leaves its base as it is, and learns in every linear layer."""
    from safetensors.torch import load_file

    weights = Path(plan.model.path) / "model.safetensors"
    before = weights.read_bytes()
    adapter = artifact_path(plan, train(plan))
    found = losses(plan)
    assert found[-1] < 0.9 * found[0]
    assert weights.read_bytes() == before
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert all(tensor.any() for tensor in tensors.values())
    assert sum("lora_B" in name for name in tensors) == 14  # every linear layer's
    return adapter, tensors


@pytest.mark.parametrize("method", ["W4A16", "W8A8", "FP8", "NF4"])
def test_lora_over_a_quantised_base_learns_as_over_the_weights_it_stands_for_and_merges_into_them(
    tiny: Path, tmp_path: Path, make_plan: Callable[..., TrainPlan], method: str
) -> None:
    import torch
    from safetensors.torch import load_file

    base = quantized(tiny, tmp_path / "base", method)
    plan = over(make_plan(run="quantised", tuner=LORA, max_steps=6, epochs=6), base)
    adapter, tensors = learned(plan)

    plain = over(
        make_plan(run="plain", tuner=LORA, max_steps=6, epochs=6), stands_for(tiny, tmp_path / "plain", method)
    )
    train(plain)
    # NF4's scales are rounded, too.
    assert losses(plan) == pytest.approx(losses(plain), rel=1e-2 if method == "NF4" else 1e-3)

    merged = merge(
        MergePlan.model_validate(
            {
                "job": plan.job, "model": plan.model, "adapters": [{"uri": "pvc://a/b", "path": str(adapter)}],
                "dtype": "Auto", "tolerance": 0.02, "output": plan.output,
            }
        )
    )  # fmt: skip
    assert merged.logit_error is not None
    assert merged.logit_error < 1e-3
    folder = artifact_path(plan, merged)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == load_file(tiny / "model.safetensors").keys()
    name = "model.layers.0.mlp.up_proj"
    update = (
        16 / 4 * (tensors[f"base_model.model.{name}.lora_B.weight"] @ tensors[f"base_model.model.{name}.lora_A.weight"])
    )
    expected = load_file(tmp_path / "plain" / "model.safetensors")[f"{name}.weight"] + update
    assert torch.allclose(weights[f"{name}.weight"], expected, atol=1e-2 if method == "NF4" else 1e-3)


@pytest.mark.parametrize(
    ("tuner", "method", "words"),
    [
        ({"type": "Full"}, None, "spec.tuner.type: the model is quantised already"),
        ({"type": "QLoRA", "rank": 4, "alpha": 16, "quantization": "NF4"}, None, "use LoRA"),
        (LORA, {"type": "RewardModel"}, "only PreTraining, SFT, DPO are known to learn"),
    ],
)
def test_what_does_not_go_with_a_quantised_base_is_refused(
    tiny: Path, tmp_path: Path, make_plan: Callable[..., TrainPlan], tuner: Any, method: Any, words: str
) -> None:
    base = quantized(tiny, tmp_path / "base", "W8A8")
    with pytest.raises(ConfigError, match=words):
        train(over(make_plan(tuner=tuner, method=method), base))


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            {"quant_method": "gptq", "bits": 4},
            "quantised by GPTQ, whose layers need gptqmodel and optimum.*podTemplate",
        ),
        ({"quant_method": "vptq"}, r"it is quantised \(vptq\); use its full-precision release"),
    ],
)
def test_a_base_whose_layers_are_not_in_the_image_is_refused_with_the_packages_that_hold_them(
    tiny: Path, tmp_path: Path, found: dict[str, Any], words: str
) -> None:
    config = json.loads((tiny / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": found}))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match=words):
        check_files(place(tmp_path), quantized=True)


def test_aqlm_hqq_and_eetq_are_refused_with_what_to_use_instead(
    tiny: Path, tmp_path: Path, make_plan: Callable[..., TrainPlan]
) -> None:
    config = json.loads((tiny / "config.json").read_text())
    (tmp_path / "model.safetensors").touch()
    for method, why in (
        ("aqlm", "fills it at random"),
        ("hqq", "does not load layers of HQQ"),
        ("eetq", "fetches EETQ's kernel from a hub"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
        with pytest.raises(ConfigError, match=f"{why}.*: use the model's full-precision release"):
            train(over(make_plan(tuner=LORA), tmp_path))
