"""The model's own arithmetic, against torch's count of what a step does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tunesmith.training.architecture import ModelFacts, facts
from tunesmith.training.plan import TrainPlan
from tunesmith_trainer.utilization import most_tokens, peak, per_token

pytestmark = pytest.mark.trainer

Make = Callable[..., TrainPlan]
TUNERS: dict[str, dict[str, Any]] = {
    "Full": {"type": "Full"},
    "LoRA": {"type": "LoRA", "rank": 8, "alpha": 16, "dropout": 0.0},
}


def known(config: Any) -> ModelFacts:
    """Facts of a configuration of transformers."""
    found, why = facts(config.to_dict())
    assert found, why
    return found


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tuner", TUNERS)
def test_flops_of_a_token_are_those_that_torch_counts(make_plan: Make, tuner: str, tied: bool) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM, Qwen2Config
    from tunesmith_trainer.tuner import add_adapter

    config = Qwen2Config(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    plan = make_plan(tuner=TUNERS[tuner])
    model = AutoModelForCausalLM.from_config(config)
    if tuner == "LoRA":
        model = add_adapter(model, plan.tuner, True, "CAUSAL_LM")
    rows, length = 2, 64
    ids = torch.randint(512, (rows, length))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    counted = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in counted.items() if "attention" not in str(op))
    # The first layer's input needs no gradient where adapters alone are trained.
    assert per_token(plan, known(config)) * rows * length == pytest.approx(products, rel=0.05)


def test_only_experts_that_a_token_passes_count(make_plan: Make) -> None:
    from transformers import MixtralConfig

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 64}
    few, all_ = (
        per_token(make_plan(tuner=TUNERS["Full"]), known(MixtralConfig(**sizes, num_experts_per_tok=n))) for n in (2, 8)
    )
    assert all_ - few == pytest.approx(6 * 2 * 6 * 3 * 64 * 128)  # 6 more experts of 3 matrices, in 2 layers


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("Quadro", None),
    ],
)
def test_peaks_by_name(name: str, expected: float | None) -> None:
    assert peak(name) == expected


def test_utilisation_is_left_out_where_it_is_not_known(make_plan: Make, tiny: Path) -> None:
    h100 = "NVIDIA H100 80GB HBM3"
    plan = make_plan(dtype="BFloat16")
    one = most_tokens(plan, h100)
    assert one
    assert most_tokens(plan.model_copy(update={"processes_per_node": 4}), h100) == pytest.approx(4 * one)
    assert most_tokens(plan, None) is None
    assert most_tokens(plan, "Quadro") is None
    assert most_tokens(make_plan(dtype="Float32"), h100) is None
