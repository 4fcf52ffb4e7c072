"""Classification: classes, sets of classes, or a number, from the last token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments
from tunesmith.api.methods import Classification
from tunesmith.training.plan import TrainPlan

from tunesmith_trainer.collate import adding
from tunesmith_trainer.data import Row
from tunesmith_trainer.errors import DataError
from tunesmith_trainer.media import media_of
from tunesmith_trainer.methods import Prepared
from tunesmith_trainer.methods.classifiers import Classifier, column, encode, load, pad_rows
from tunesmith_trainer.methods.metered import Metered
from tunesmith_trainer.methods.preferences import padded
from tunesmith_trainer.tokens import Limit

__all__ = ["CONFIG", "TASK", "TRAINER", "load", "prepare"]

CONFIG = TrainingArguments
TASK = "SEQ_CLS"


class TRAINER(Classifier, Metered, Trainer):
    """The mean loss over rows."""

    def loss_of(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Cross entropy, binary cross entropy, or squared error."""
        options = self.plan.method.classification
        assert options
        given = {name: value for name, value in inputs.items() if name != "targets"}
        logits = model(**given, use_cache=False).logits.float()
        labels = inputs["targets"]
        if options.problem == "SingleLabel":
            return cross_entropy(logits, labels), {"accuracy": (logits.argmax(-1) == labels).float()}
        if options.problem == "MultiLabel":
            right = ((logits > 0) == (labels > 0.5)).all(-1)
            return binary_cross_entropy_with_logits(logits, labels), {"accuracy": right.float()}
        errors = logits[:, 0] - labels
        return mse_loss(logits[:, 0], labels), {"mean_absolute_error": errors.abs()}


def target(row: Row, options: Classification) -> int | float | list[float]:
    """A row's label as a number, or as one per class."""
    value, names = row.label, options.labels or []
    if options.problem == "Regression":
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            with suppress(ValueError):
                if math.isfinite(number := float(value)):
                    return number
        raise DataError(f"{row.where}: the label is {value!r}; expected a number, as problem is Regression")
    if options.problem == "SingleLabel":
        return place(row, value, names)
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list):
        raise DataError(f"{row.where}: the label is {value!r}; expected a list of classes")
    chosen = {place(row, one, names) for one in value}
    return [float(number in chosen) for number in range(len(names))]


def place(row: Row, value: object, names: Sequence[str]) -> int:
    """The place of a class among the labels: by its name, else by its number."""
    if isinstance(value, str) and value in names:
        return names.index(value)
    if isinstance(value, bool) and str(value).lower() in names:
        return names.index(str(value).lower())
    if str(value) in names and names.index(str(value)) != value:
        raise DataError(
            f"{row.where}: the label is the number {value!r}, which is the name of one class and may be the place of "
            f"another in spec.method.classification.labels {list(names)[:20]}; expected text, {str(value)!r}, or names "
            "that are no numbers"
        )
    number = int(value) if isinstance(value, str) and value.isdigit() else value
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(names):
        return number
    raise DataError(
        f"{row.where}: the label is {value!r}; expected one of spec.method.classification.labels {list(names)[:20]}, "
        f"or its place from 0 to {len(names) - 1}"
    )


def prepare(plan: TrainPlan, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> Prepared:
    """Tokens and labels."""
    options = plan.method.classification
    assert options
    pad, limit = padded(tokenizer), Limit.of(plan)
    most = limit.tokens
    every = [(row, encode(row.messages or row.text, tokenizer, row, limit)) for row in rows]
    kept, ids = [row for row, one in every if one], [one for _, one in every if one]
    if not kept:
        raise DataError(f"all {len(rows)} rows are longer than spec.training.maxLength {most}: raise it")
    media = column([media_of(row.messages) for row in kept], tokenizer)
    dataset = Dataset.from_dict({"ids": ids, "target": [target(row, options) for row in kept], **media})

    def collate(examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        labels = torch.tensor(
            [one["target"] for one in examples],
            dtype=torch.long if options.problem == "SingleLabel" else torch.float32,
        )
        return {**pad_rows([one["ids"] for one in examples], pad), "targets": labels}

    summary = (
        f"{len(kept)} rows, {sum(map(len, ids))} tokens; {sum(len(one) == most for one in ids)} fill maxLength, "
        f"{len(rows) - len(kept)} left out as longer"
    )
    more, collator = adding(tokenizer, collate)
    given = {"processing_class": tokenizer, "data_collator": collate, **collator}
    return Prepared(dataset, summary, more, given, [len(one) for one in ids])
