"""KTO, by trl.KTOTrainer."""

from __future__ import annotations

import random
from collections.abc import Sequence

from datasets import Dataset
from transformers import PreTrainedTokenizerFast
from trl import KTOConfig, KTOTrainer
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference
from tunesmith.api.methods import KTO
from tunesmith.training.plan import TrainPlan

from tunesmith_trainer.cache import cache_of
from tunesmith_trainer.collate import adding
from tunesmith_trainer.data import Row
from tunesmith_trainer.errors import DataError
from tunesmith_trainer.methods import Prepared
from tunesmith_trainer.methods.causal import TASK, load
from tunesmith_trainer.methods.preferences import Held, padded
from tunesmith_trainer.tokens import Limit, split_answers

__all__ = ["CONFIG", "TASK", "TRAINER", "load", "prepare"]

CONFIG = KTOConfig


class TRAINER(Held, KTOTrainer):
    """TRL's KTOTrainer."""


def prepare(plan: TrainPlan, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> Prepared:
    """Prompts, answers and labels, and to each prompt another row's answer, from which the divergence is estimated.
    TRL takes that from the row before in the file's order of micro-batches; here it is drawn once by the seed, the
    same whatever the order and the number of processes.
    """
    found = split_answers(rows, tokenizer, Limit.of(plan), cache=cache_of(plan))
    count = len(found.kept)
    if count < 2:
        raise DataError("KTO needs two rows at least: each row's prompt is compared with another row's answer")
    order = list(range(count))
    random.Random(plan.training.seed).shuffle(order)
    other = {row: order[place - 1] for place, row in enumerate(order)}
    dataset = Dataset.from_dict(
        {
            "prompt_ids": found.prompts,
            "completion_ids": [answer for [answer] in found.answers],
            "KL_completion_ids": [
                found.answers[other[row]][0][: max(1, plan.training.max_length - len(found.prompts[row]))]
                for row in range(count)
            ],
            "label": [bool(rows[row].label) for row in found.kept],
            **found.media,
        }
    )
    options = plan.method.kto or KTO()
    good = sum(dataset["label"])
    arguments = {
        "beta": options.beta, "desirable_weight": options.desirable_weight,
        "undesirable_weight": options.undesirable_weight, "max_length": None, "disable_dropout": False,
        "train_sampling_strategy": "sequential",  # TRL insists; our own sampler shuffles
    }  # fmt: skip
    summary = f"{found.summary()}; {good} good and {count - good} bad answers"
    more, collator = adding(tokenizer, DataCollatorForUnpairedPreference(pad_token_id=padded(tokenizer)))
    return Prepared(dataset, summary, arguments | more, {"processing_class": tokenizer, **collator})
