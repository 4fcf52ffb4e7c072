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
from tunesmith_trainer.collate import COLUMN
from tunesmith_trainer.data import Row
from tunesmith_trainer.drawn import Encode, Example, Lazy, lazy_answers, seen_with
from tunesmith_trainer.lifecycle import Lifecycle
from tunesmith_trainer.methods.causal import drop_copy
from tunesmith_trainer.model import check_files, compute_dtype, load_model
from tunesmith_trainer.tokens import Limit, split_answers

PAIR = ("prompt_ids", "chosen_ids", "rejected_ids")


def pairs(plan: TrainPlan, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> tuple[Dataset, str]:
    """Rows as TRL's collator for preferences wants them, and a summary."""
    if plan.training.tokenization == "Lazy":
        lazy = Lazy(len(rows), [*PAIR, COLUMN], lazy_pairs(plan, rows, tokenizer))
        return lazy, lazy.summary()
    found = split_answers(rows, tokenizer, Limit.of(plan), rejected=True, cache=cache_of(plan))
    chosen, rejected = zip(*found.answers, strict=True)
    columns = dict(zip(PAIR, (found.prompts, chosen, rejected), strict=True))
    return Dataset.from_dict({**columns, **found.media}), found.summary()


def lazy_pairs(plan: TrainPlan, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> Encode:
    """The same of rows that are drawn."""
    encode = lazy_answers(plan, rows, tokenizer, rejected=True)

    def pair(one: Example) -> Example:
        values = zip(PAIR, (one["prompt"], *one["answers"]), strict=True)
        return {**dict(values), **seen_with(one)}

    return lambda places: [[pair(one) for one in found] for found in encode(places)]


def lengths(pairs: Dataset) -> Sequence[int] | None:
    """Tokens of each pair's longer conversation; None where they are not known yet."""
    if isinstance(pairs, Lazy):
        return None
    prompts, *answers = (pairs[name] for name in PAIR)
    return [len(prompt) + max(map(len, both)) for prompt, *both in zip(prompts, *answers, strict=True)]


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
