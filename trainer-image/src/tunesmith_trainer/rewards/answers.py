"""What a reward is given, and what it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunesmith_trainer.data import Row

Scores = list[float | None]
"""One for each answer; None: it cannot be judged."""


@dataclass(frozen=True)
class Answers:
    """Answers to prompts, and the rows that the prompts came from."""

    rows: Sequence[Row]
    prompts: Sequence[str]
    """As the model read them, by its chat template."""
    completions: Sequence[str]
    ids: Sequence[Sequence[int]]
    """Tokens of the completions."""

    def columns(self) -> dict[str, list[Any]]:
        """The rows' remaining columns; None where a row has not one of them."""
        names = {name: None for row in self.rows for name in row.extra}
        return {name: [row.extra.get(name) for row in self.rows] for name in names}
