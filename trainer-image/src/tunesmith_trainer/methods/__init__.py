"""The methods: one module each, or one for several that differ in little. See `Recipe` for what such a module has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from tunesmith.api.methods import MethodType
from tunesmith.training.plan import TrainPlan

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerFast, TrainingArguments

    from tunesmith_trainer.data import Row
    from tunesmith_trainer.lifecycle import Lifecycle
    from tunesmith_trainer.reading import Data

MODULES: dict[MethodType, str] = {
    "PreTraining": "supervised",
    "SFT": "supervised",
    "DPO": "dpo",
    "KTO": "kto",
    "CPO": "pairwise",
    "SimPO": "pairwise",
    "ORPO": "pairwise",
    "RewardModel": "reward",
    "Classification": "classification",
    "Embedding": "embedding",
    "Reranker": "reranker",
    "GRPO": "grpo",
    "PPO": "ppo",
    "GKD": "gkd",
}


@dataclass(frozen=True)
class Prepared:
    """The rows of a method, ready for its trainer."""

    dataset: Any
    """A datasets.Dataset with the columns that the trainer wants."""
    summary: str
    """For people: how many rows, tokens, and what was left out."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Of CONFIG, beyond what all methods have."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of TRAINER, for example processing_class or data_collator."""
    lengths: Sequence[int] | None = None
    """Tokens of each row, where a step's gradient is the same whichever of its rows make a micro-batch."""
    validation: Prepared | None = None
    """The same of the rows to evaluate on, if there are any."""


class Recipe(Protocol):
    """What a module of this package has."""

    CONFIG: type[TrainingArguments]
    TRAINER: type[Lifecycle]
    TASK: str
    """PEFT's task type."""

    def prepare(self, plan: TrainPlan, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> Prepared:
        """Tokenise the rows. Raises DataError."""
        ...

    def load(
        self,
        plan: TrainPlan,
        dtype: torch.dtype,
        quantization: BitsAndBytesConfig | None,
        device: str | int | None,
    ) -> PreTrainedModel:
        """The model that is trained, with its head."""
        ...


def recipe(type_: MethodType) -> Recipe:
    """The module of a method. It is imported on first use: TRL's trainers take seconds."""
    module: Any = import_module(f"{__name__}.{MODULES[type_]}")
    return module  # type: ignore[no-any-return]


def prepare(plan: TrainPlan, data: Data, tokenizer: PreTrainedTokenizerFast) -> Prepared:
    """The rows of a plan's method, and those to evaluate on, tokenised. Raises DataError."""
    method = recipe(plan.method.type)
    prepared = method.prepare(plan, data.rows, tokenizer)
    if not data.validation:
        return prepared
    # Rows to evaluate on are few, and the same each time.
    cached = plan.training.model_copy(update={"tokenization": "Cached", "streaming": "Disabled"})
    validation = method.prepare(plan.model_copy(update={"training": cached}), data.validation, tokenizer)
    summary = f"{prepared.summary}\nvalidation: {validation.summary}"
    return replace(prepared, validation=validation, summary=summary)
