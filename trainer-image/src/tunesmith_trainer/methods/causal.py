"""What methods share that train a causal language model: how it is loaded, and what becomes of TRL's copy of it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel
from tunesmith.training.plan import TrainPlan

from tunesmith_trainer import tensor
from tunesmith_trainer.model import load_model

TASK = "CAUSAL_LM"


def load(
    plan: TrainPlan, dtype: torch.dtype, quantization: BitsAndBytesConfig | None, device: str | int | None
) -> PreTrainedModel:
    """The causal language model."""
    return load_model(plan.model, dtype, quantization, device, distributed=tensor.config(plan))


def drop_copy(model: Any) -> None:
    """TRL keeps a copy of the new adapter as the reference, which would be saved with it. The base without adapters is
    the same model.
    """
    if "ref" in getattr(model, "peft_config", {}):
        model.delete_adapter("ref")
