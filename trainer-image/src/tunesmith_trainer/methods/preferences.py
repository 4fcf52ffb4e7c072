"""What DPO, KTO, CPO, SimPO and ORPO share: pairs as tokens, and the model that the policy is held to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from tunesmith.api.methods import MEMBERS
from tunesmith.training.plan import TrainPlan

from tunesmith_trainer import strategy
from tunesmith_trainer.cache import cache_of
from tunesmith_trainer.data import Row
from tunesmith_trainer.lifecycle import Lifecycle
from tunesmith_trainer.methods.causal import drop_copy
from tunesmith_trainer.model import check_files, compute_dtype, load_model
from tunesmith_trainer.tokens import Limit, split_answers


def pairs(plan: TrainPlan, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> tuple[Dataset, str]:
    """Rows as TRL's collator for preferences wants them, and a summary."""
    found = split_answers(rows, tokenizer, Limit.of(plan), rejected=True, cache=cache_of(plan))
    chosen, rejected = zip(*found.answers, strict=True)
    columns = {"prompt_ids": found.prompts, "chosen_ids": chosen, "rejected_ids": rejected, **found.media}
    return Dataset.from_dict(columns), found.summary()


def padded(tokenizer: PreTrainedTokenizerFast) -> int:
    """The token that fills up shorter rows; nothing is learned from it, whichever it is."""
    token: Any = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(token)


def reference(plan: TrainPlan) -> PreTrainedModel | None:
    """The model that the policy is held to: the method's referenceModel, else spec.model as it was. None: the base
    below the adapters is it.
    """
    place = plan.method.models.get(f"spec.method.{MEMBERS[plan.method.type]}.referenceModel")
    if place is None and plan.tuner.type != "Full":
        return None
    place = place or plan.model
    check_files(place)
    compute = compute_dtype(plan.training.dtype)
    whole = plan.tuner.type == "Full" and not strategy.STAGES[plan.distribution.strategy]
    model: Any = load_model(place, torch.float32 if whole else compute)
    model.config.use_cache = False
    return model.requires_grad_(False)  # type: ignore[no-any-return]


class Held(Lifecycle):
    """Beside one of TRL's trainers that hold the policy to a reference, on rows that are tokens already."""

    def __init__(self, plan: TrainPlan, *others: Any, **options: Any) -> None:
        super().__init__(plan, *others, ref_model=reference(plan), **options)
        drop_copy(self.model)

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset
