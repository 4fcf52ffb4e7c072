"""LoRA over checkpoints in the formats of AutoGPTQ and AutoAWQ: it learns as over the weights that they stand for. The
layers are gptqmodel's, which `make packed` installs.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from trainer.support import ROWS, artifact_path, losses
from trainer.test_export import place
from trainer.test_quantized_bases import LORA, learned, over
from tunesmith.agent import base as served
from tunesmith.inspecting.files import Files
from tunesmith.inspecting.model import inspect
from tunesmith.training.plan import MergePlan, TrainPlan
from tunesmith_trainer import comparison
from tunesmith_trainer.errors import ModelError
from tunesmith_trainer.infer.subject import described, load
from tunesmith_trainer.merge import merge
from tunesmith_trainer.model import load_model
from tunesmith_trainer.train import train

pytestmark = [
    pytest.mark.trainer,
    pytest.mark.skipif(
        not (find_spec("gptqmodel") and find_spec("optimum")), reason="gptqmodel and optimum are not here: make packed"
    ),
    pytest.mark.filterwarnings("ignore:.*is an Enum subclass"),
    pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning"),  # gptqmodel's
]

GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False}
CONFIGS: dict[str, dict[str, Any]] = {
    "GPTQ": GPTQ,
    "GPTQ in act-order": {**GPTQ, "desc_act": True},
    "AWQ": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
}
LAYERS = {
    "GPTQ": "TorchAtenLinear",
    "GPTQ in act-order": "TorchAtenLinear",
    "AWQ": "TorchAtenAwqLinear",
}


def packed(numbers: Any, order: tuple[int, ...] = tuple(range(8))) -> Any:
    """Of each row, eight 4-bit numbers to an int32, the lowest bits first."""
    import torch

    eights = numbers.to(torch.int64).unflatten(-1, (-1, 8))
    found = sum(eights[..., number] << (4 * position) for position, number in enumerate(order))
    return torch.where(found >= 2**31, found - 2**32, found).to(torch.int32).contiguous()


def quantized(weight: Any, form: str) -> tuple[dict[str, Any], Any]:
    """4-bit numbers in groups of inputs, each with a scale and a zero for each output."""
    import torch

    inputs = weight.shape[1]
    group_of = torch.arange(inputs) // GROUP
    if form == "GPTQ in act-order":
        group_of = group_of[torch.randperm(inputs)]
    groups = torch.stack([weight.T[group_of == group] for group in range(inputs // GROUP)])
    low, high = groups.amin(1), groups.amax(1)
    if form == "AWQ":
        scales = ((high - low) / 15).half()
        zeros = (-low / scales.float()).round().clamp(0, 15)
    else:
        scales = (groups.abs().amax(1) / 7.5).half()
        zeros = torch.full_like(low, 8)
    steps, middle = scales.float()[group_of], zeros[group_of]
    numbers = (weight.T / steps + middle).round().clamp(0, 15)
    stands_for = ((numbers - middle) * steps).half().float().T.contiguous()
    if form == "AWQ":
        return {"qweight": packed(numbers, AWQ_ORDER), "qzeros": packed(zeros, AWQ_ORDER), "scales": scales}, stands_for
    return {
        "qweight": packed(numbers.T).T.contiguous(), "qzeros": packed(zeros - 1), "scales": scales,
        "g_idx": group_of.int(),
    }, stands_for  # fmt: skip


def write(tiny: Path, folder: Path, form: str) -> tuple[Path, Path]:
    """The tiny model in the format, and a plain one with the weights that it stands for."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(0)
    base, plain = folder / "base", folder / "plain"
    for target in (base, plain):
        shutil.copytree(tiny, target)
    weights, stored = load_file(tiny / "model.safetensors"), {}
    for name, weight in list(weights.items()):
        if name.endswith("_proj.weight"):
            tensors, weights[name] = quantized(weight, form)
            stored |= {name.removesuffix("weight") + part: tensor for part, tensor in tensors.items()}
        else:
            stored[name] = weight
    save_file(stored, base / "model.safetensors", {"format": "pt"})
    save_file(weights, plain / "model.safetensors", {"format": "pt"})
    config = json.loads((tiny / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": CONFIGS[form]}))
    return base, plain


def loss_and_gradients(model: Path, adapter: Path) -> tuple[float, dict[str, Any]]:
    """Of a loss over some tokens, to the adapter's weights."""
    import torch
    from peft import PeftModel

    whole: Any = PeftModel.from_pretrained(load_model(place(model), torch.float32), adapter, is_trainable=True).train()
    tokens = torch.arange(40).reshape(2, 20) * 7
    loss = whole(input_ids=tokens, labels=tokens).loss
    loss.backward()
    return loss.item(), {name: value.grad for name, value in whole.named_parameters() if value.requires_grad}


@pytest.mark.parametrize("form", list(CONFIGS))
def test_lora_over_a_packed_base_learns_by_the_gradients_of_the_weights_it_stands_for(
    tiny: Path, tmp_path: Path, make_plan: Callable[..., TrainPlan], form: str
) -> None:
    import torch

    base, plain = write(tiny, tmp_path, form)
    adapter, _ = learned(over(make_plan(tuner=LORA, max_steps=6, epochs=6), base))

    layers = [type(module).__name__ for module in load_model(place(base), torch.float32).modules()]
    assert layers.count(LAYERS[form]) == 14
    loss, gradients = loss_and_gradients(base, adapter)
    expected, exact = loss_and_gradients(plain, adapter)
    assert loss == pytest.approx(expected, rel=1e-6)
    assert gradients.keys() == exact.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, exact[name], rtol=1e-5, atol=1e-7)


def test_preferences_are_learned_over_a_packed_base(
    tiny: Path, tmp_path: Path, make_plan: Callable[..., TrainPlan]
) -> None:
    base, _ = write(tiny, tmp_path, "GPTQ")
    rows = [{"query": row["query"], "response": row["response"], "rejected_response": "no"} for row in ROWS]
    plan = over(make_plan(tuner=LORA, method={"type": "DPO", "dpo": {}}, rows=rows, max_steps=6, epochs=6), base)
    train(plan)
    found = losses(plan)
    assert found[0] == pytest.approx(math.log(2), abs=1e-3)  # the base below the adapter is the reference
    assert found[-1] < 0.9 * found[0]


@pytest.mark.parametrize("form", ["GPTQ", "AWQ"])
def test_an_adapter_over_a_packed_base_answers_as_over_the_weights_it_stands_for(
    tiny: Path, tmp_path: Path, make_plan: Callable[..., TrainPlan], form: str
) -> None:
    base, plain = write(tiny, tmp_path, form)
    plan = over(make_plan(tuner=LORA, max_steps=2, epochs=2), base)
    adapter = place(artifact_path(plan, train(plan)))
    found, expected = (load(described(place(model), adapter)) for model in (base, plain))
    by = [comparison.logits(loaded.model, loaded.tokenizer) for loaded in (expected, found)]
    assert comparison.logit_error(*by) < 0.02  # gptqmodel computes in bfloat16 where nothing is learned

    merging = {
        "job": plan.job, "model": plan.model, "adapters": [{"uri": "pvc://a/b", "path": adapter.path}],
        "dtype": "Auto", "tolerance": 0.02, "output": plan.output,
    }  # fmt: skip
    with pytest.raises(ModelError, match=f"quantised by {form}, from which its weights cannot be turned back: serve"):
        merge(MergePlan.model_validate(merging))


@pytest.mark.parametrize("form", ["GPTQ", "AWQ"])
def test_kernels_are_chosen_through_which_gradients_pass(tiny: Path, tmp_path: Path, form: str) -> None:
    import torch
    from tunesmith_trainer.tuner import check_gradients

    base, _ = write(tiny, tmp_path, form)
    model: Any = load_model(place(base), torch.float32)
    assert model.config.quantization_config.backend == "auto_trainable"
    with torch.no_grad():
        model.eval()(
            input_ids=torch.arange(8).reshape(1, 8)
        )  # gptqmodel's layers stay with the kernel of the first use
    with pytest.raises(ModelError, match=r"no gradient passes model\.layers\.0\.self_attn\..*full-precision release"):
        check_gradients(model, "pvc://models/tiny")


def test_a_packed_base_whose_layers_are_not_all_packed_is_refused(tiny: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    base, plain = write(tiny, tmp_path, "GPTQ")
    name = "model.layers.1.mlp.down_proj"
    stored = {key: value for key, value in load_file(base / "model.safetensors").items() if not key.startswith(name)}
    stored[f"{name}.weight"] = load_file(plain / "model.safetensors")[f"{name}.weight"]
    save_file(stored, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=rf"no {name}\.(qweight|qzeros|scales|g_idx)"):
        load_model(place(base), torch.float32)


@pytest.mark.parametrize("form", ["GPTQ", "AWQ"])
def test_inspection_and_agent_know_a_packed_base(tiny: Path, tmp_path: Path, form: str) -> None:
    base, _ = write(tiny, tmp_path, form)
    names = [path.name for path in base.iterdir()]
    seen = inspect(
        "s3://models/base", Files("it", names, lambda name, start, n: (base / name).read_bytes()[start:][:n])
    )
    assert seen.base == form
    assert seen.facts
    assert (seen.facts.quantized, seen.facts.packed) == (True, "NF4")
    whole, found = served.read(tiny), served.read(base)
    assert {name: found.modules.get(name) for name in whole.modules} == whole.modules
