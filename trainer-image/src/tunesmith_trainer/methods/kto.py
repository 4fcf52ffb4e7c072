"""KTO, by trl.KTOTrainer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast
from trl import KTOConfig, KTOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference
from tunesmith.api.methods import KTO
from tunesmith.training.plan import TrainPlan

from tunesmith_trainer.cache import cache_of
from tunesmith_trainer.collate import COLUMN, adding
from tunesmith_trainer.data import Row
from tunesmith_trainer.drawn import Example, Lazy, lazy_answers, seen_with
from tunesmith_trainer.errors import DataError
from tunesmith_trainer.means import Metrics
from tunesmith_trainer.methods import Prepared
from tunesmith_trainer.methods.causal import TASK, load
from tunesmith_trainer.methods.preferences import Held, padded
from tunesmith_trainer.tokens import Limit, split_answers

__all__ = ["CONFIG", "TASK", "TRAINER", "load", "prepare"]

CONFIG = KTOConfig


class TRAINER(Held, KTOTrainer):
    """TRL's KTOTrainer."""

    def counted(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Good and bad answers have means of their own, over answers or over their tokens."""
        tokens, good = inputs["completion_mask"][:, 1:].sum(1), inputs["label"].bool()
        found = {"entropy": tokens.sum()}
        for side, own in (("chosen", good), ("rejected", ~good)):
            found |= {f"rewards/{side}": own.sum(), f"logps/{side}": own.sum(), f"logits/{side}": tokens[own].sum()}
        return found

    def settle(self, metrics: Metrics) -> None:
        """The margin is that of the means: there are micro-batches with good or bad answers only."""
        super().settle(metrics)
        if sides := [metrics[f"rewards/{side}"] for side in ("chosen", "rejected") if f"rewards/{side}" in metrics]:
            metrics.pop("rewards/margins", None)
            if len(sides) == 2:
                metrics["rewards/margins"] = [fmean(sides[0]) - fmean(sides[1])]


def prepare(plan: TrainPlan, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> Prepared:
    """Prompts, answers and labels, and to each prompt another row's answer, from which the divergence is estimated.
    TRL takes that from the row before in the file's order of micro-batches; here it is drawn once by the seed, the
    same whatever the order and the number of processes.
    """
    if plan.training.tokenization == "Lazy":
        dataset, summary = lazily(plan, rows, tokenizer)
    else:
        dataset, summary = made(plan, rows, tokenizer)
    options = plan.method.kto or KTO()
    arguments = {
        "beta": options.beta, "desirable_weight": options.desirable_weight,
        "undesirable_weight": options.undesirable_weight, "max_length": None, "disable_dropout": False,
        "train_sampling_strategy": "sequential",  # TRL insists; our own sampler shuffles
    }  # fmt: skip
    more, collator = adding(tokenizer, DataCollatorForUnpairedPreference(pad_token_id=padded(tokenizer)))
    return Prepared(dataset, summary, arguments | more, {"processing_class": tokenizer, **collator})


def others(count: int, seed: int) -> list[int]:
    """To each row another one."""
    if count < 2:
        raise DataError("KTO needs two rows at least: each row's prompt is compared with another row's answer")
    order = list(range(count))
    random.Random(seed).shuffle(order)
    found = [0] * count
    for place, row in enumerate(order):
        found[row] = order[place - 1]
    return found


def cut(plan: TrainPlan, prompt: list[int], answer: list[int]) -> list[int]:
    """Another row's answer, as much of it as there is room for after a prompt."""
    return answer[: max(1, plan.training.max_length - len(prompt))]


def made(plan: TrainPlan, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> tuple[Dataset, str]:
    """All rows as tokens, and a summary."""
    found = split_answers(rows, tokenizer, Limit.of(plan), cache=cache_of(plan))
    other = others(len(found.kept), plan.training.seed)
    dataset = Dataset.from_dict(
        {
            "prompt_ids": found.prompts,
            "completion_ids": [answer for [answer] in found.answers],
            "KL_completion_ids": [
                cut(plan, prompt, found.answers[other[row]][0]) for row, prompt in enumerate(found.prompts)
            ],
            "label": [bool(rows[row].label) for row in found.kept],
            **found.media,
        }
    )
    good = sum(dataset["label"])
    return dataset, f"{found.summary()}; {good} good and {len(dataset) - good} bad answers"


def lazily(plan: TrainPlan, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> tuple[Dataset, str]:
    """The same of rows that are drawn."""
    answers = Lazy(len(rows), ["prompt", "answers"], lazy_answers(plan, rows, tokenizer))
    other = others(len(rows), plan.training.seed)

    def example(place: int, one: Example) -> Example:
        another = answers.at(other[place])[0]
        return {
            "prompt_ids": one["prompt"],
            "completion_ids": one["answers"][0],
            "KL_completion_ids": cut(plan, one["prompt"], another["answers"][0]),
            "label": bool(one["row"].label),
            **seen_with(one),
        }

    def encode(places: Sequence[int]) -> list[list[Example]]:
        made = answers.encode(places)
        return [[example(place, one) for one in found] for place, found in zip(places, made, strict=True)]

    columns = ["prompt_ids", "completion_ids", "KL_completion_ids", "label", COLUMN]
    dataset = Lazy(len(rows), columns, encode)
    return dataset, dataset.summary()
