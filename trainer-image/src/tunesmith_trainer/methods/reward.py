"""RewardModel, by trl.RewardTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerFast
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference
from tunesmith.api.methods import RewardModel
from tunesmith.training.plan import TrainPlan

from tunesmith_trainer.chat import need_template
from tunesmith_trainer.collate import COLUMN, adding
from tunesmith_trainer.data import Row
from tunesmith_trainer.errors import DataError
from tunesmith_trainer.media import media_of
from tunesmith_trainer.methods import Prepared
from tunesmith_trainer.methods.classifiers import Classifier, column, encode, load
from tunesmith_trainer.methods.preferences import padded
from tunesmith_trainer.tokens import Limit

__all__ = ["CONFIG", "TASK", "TRAINER", "load", "prepare"]

CONFIG = RewardConfig
TASK = "SEQ_CLS"


class TRAINER(Classifier, RewardTrainer):
    """TRL's RewardTrainer on rows that are tokens already."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


def sides_of(examples: Sequence[dict[str, Any]]) -> list[list[int]]:
    """The media of the better conversations, then of the worse ones."""
    return [one[COLUMN][side] if one.get(COLUMN) else [] for side in (0, 1) for one in examples]


def prepare(plan: TrainPlan, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> Prepared:
    """Both conversations as tokens. One that is too long is left out, or cut at its beginning: its end is judged."""
    need_template(rows, tokenizer)
    limit = Limit.of(plan)
    if limit.truncation == "Right":
        limit = replace(limit, truncation="Drop")
    columns: dict[str, list[Any]] = {"chosen_ids": [], "rejected_ids": [], "margin": []}
    media: list[Any] = []
    for row in rows:
        sides = [encode(side, tokenizer, row, limit) for side in (row.messages, row.rejected)]
        if all(sides):
            media.append([media_of(row.messages), media_of(row.rejected)])
            for name, value in zip(columns, (*sides, row.margin or 0.0), strict=True):
                columns[name].append(value)
    left = len(columns["margin"])
    if not left:
        raise DataError(f"all {len(rows)} rows are longer than spec.training.maxLength {limit.tokens}: raise it")
    if not any(columns["margin"]):
        del columns["margin"]
    columns |= column(media, tokenizer)
    weight = (plan.method.reward_model or RewardModel()).center_weight
    tokens = sum(map(len, columns["chosen_ids"] + columns["rejected_ids"]))
    more, collator = adding(tokenizer, DataCollatorForPreference(pad_token_id=padded(tokenizer)), sides_of)
    return Prepared(
        Dataset.from_dict(columns),
        f"{left} pairs, {tokens} tokens; {len(rows) - left} left out as longer than maxLength",
        {"center_rewards_coefficient": weight or None, "max_length": None, "disable_dropout": False, **more},
        {"processing_class": tokenizer, **collator},
        [max(len(one), len(other)) for one, other in zip(columns["chosen_ids"], columns["rejected_ids"], strict=True)],
    )
