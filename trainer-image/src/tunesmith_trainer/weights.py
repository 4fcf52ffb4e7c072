"""Weights of tokens: what the loss of each is multiplied by, from the table of tokens to the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad

from tunesmith_trainer.tokens import WEIGHTS

if TYPE_CHECKING:
    from datasets import Dataset

Batch = dict[str, Any]


def filled(table: Dataset) -> Dataset:
    """The table with a weight for each token of each row, also of rows in which all are 1."""
    if WEIGHTS not in table.column_names:
        return table
    return table.map(lambda row: {WEIGHTS: row[WEIGHTS] or [1.0] * len(row["input_ids"])})


class WithWeights:
    """A collator that adds the weights to another's batch, in the places of its tokens: rows below one another, filled
    up at the right, or all in one.
    """

    def __init__(self, inner: Callable[[list[Batch]], Batch]) -> None:
        self.inner = inner

    def __call__(self, examples: list[Batch]) -> Batch:
        """A batch; without weights where no row of it has any."""
        batch = self.inner([{name: v for name, v in one.items() if name != WEIGHTS} for one in examples])
        if not any(one.get(WEIGHTS) for one in examples):
            return batch
        rows = [torch.tensor(one.get(WEIGHTS) or [1.0] * len(one["input_ids"])) for one in examples]
        if len(batch["input_ids"]) < len(rows):
            rows = [torch.cat(rows)]
        length = batch["input_ids"].shape[1]
        batch[WEIGHTS] = torch.stack([pad(row, (0, length - len(row)), value=1.0) for row in rows])
        return batch


def weighing(model: Callable[..., Any], weights: torch.Tensor) -> Callable[..., Any]:
    """The model with TRL's fused head, whose log-probabilities [rows, tokens - 1] are multiplied by the weights
    [rows, tokens] of what they are of. Virtual tokens before the row (prompt tuning) have none.
    """

    def weighed(**inputs: Any) -> Any:
        outputs = model(**inputs)
        own = pad(weights[:, 1:], (outputs.log_probs.shape[1] - weights.shape[1] + 1, 0), value=1.0)
        outputs.log_probs = outputs.log_probs * own
        return outputs

    return weighed
