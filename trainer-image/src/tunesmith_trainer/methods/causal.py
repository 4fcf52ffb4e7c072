"""What methods share that train a causal language model: how it is loaded, what its head computes, and what becomes of
TRL's copy of it.
"""

from __future__ import annotations

from typing import Any

import torch
import trl.trainer.utils
from transformers import BitsAndBytesConfig, PreTrainedModel
from tunesmith.training.plan import TrainPlan

from tunesmith_trainer import tensor
from tunesmith_trainer.model import WHOLE_TO_TRAIN, load_model

TASK = "CAUSAL_LM"

_on_triton = trl.trainer.utils._use_triton


def _scores_learned_only(device: torch.device) -> bool:
    return _on_triton(device) or device.type == "cpu"


# TRL's fused head scores prompts and padding, too, on devices without Triton, as some compile anew for each number of
# tokens. CPUs do not: there it is but waste, of more than the head's share of a step (benchmarks/trainer).
trl.trainer.utils._use_triton = _scores_learned_only


def load(
    plan: TrainPlan, dtype: torch.dtype, quantization: BitsAndBytesConfig | None, device: str | int | None
) -> PreTrainedModel:
    """The causal language model."""
    return load_model(plan.model, dtype, quantization, device, distributed=tensor.config(plan), whole=WHOLE_TO_TRAIN)


def drop_copy(model: Any) -> None:
    """TRL keeps a copy of the new adapter as the reference, which would be saved with it. The base without adapters is
    the same model.
    """
    if "ref" in getattr(model, "peft_config", {}):
        model.delete_adapter("ref")
