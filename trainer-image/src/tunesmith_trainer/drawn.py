"""Rows that become tokens when they are drawn: nothing is made of them before, and nothing is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from datasets.table import InMemoryTable
from torch.utils.data import get_worker_info
from tunesmith.training.plan import TrainPlan

from tunesmith_trainer.chat import need_template
from tunesmith_trainer.collate import COLUMN
from tunesmith_trainer.data import Row
from tunesmith_trainer.errors import DataError
from tunesmith_trainer.masks import Masker
from tunesmith_trainer.media import Medium, media_of
from tunesmith_trainer.sequence import check_weights
from tunesmith_trainer.tokens import BATCH, WEIGHTS, Limit, answered, texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Example = dict[str, Any]
Encode = Callable[[Sequence[int]], list[list[Example]]]
"""Places of rows -> what is learned of each: one example as a rule, several, or none."""
TEXTS = ("input_ids", "labels", WEIGHTS, COLUMN)
"""Columns of what is learned of a text."""
WORKERS = 2
"""Processes of a loader."""
PATIENCE = 1000
"""Rows one after the other with nothing to learn, after which no further one is tried."""


class Drawn(Dataset):  # type: ignore[misc]
    """A dataset whose examples are made when the loader asks for them, in its own processes where it has some."""

    def __init__(self, columns: Sequence[str]) -> None:
        from pyarrow import nulls, table

        super().__init__(InMemoryTable(table({name: nulls(0) for name in columns})))
        self.counts = torch.zeros(1 + WORKERS, dtype=torch.int64).share_memory_()

    def count(self, rows: int = 1) -> None:
        """Rows were not learned from. Each process of the loader counts for itself."""
        worker = get_worker_info()
        self.counts[1 + worker.id if worker else 0] += rows

    @property
    def passed(self) -> int:
        """How often a row was not learned from; those that were read ahead are counted."""
        return int(self.counts.sum())

    def remove_columns(self, column_names: Any, new_fingerprint: Any = None) -> Drawn:
        """Examples have nothing that is not wanted."""
        return self

    def __getitem__(self, key: Any) -> Any:
        return self.__getitems__([key])[0]

    def __iter__(self) -> Iterator[Example]:
        return (self[place] for place in range(len(self)))


class Lazy(Drawn):
    """`rows` rows. Where one has nothing to learn the next that has is taken, so that the order of rows depends on the
    seed alone. A row that becomes several texts comes with all of them into one micro-batch.
    """

    def __init__(self, rows: int, columns: Sequence[str], encode: Encode) -> None:
        super().__init__(columns)
        self.rows, self.encode = rows, encode
        self.at(0)  # what is wrong with all rows is told before the model is loaded
        self.counts.zero_()

    @staticmethod
    def told(passed: int) -> str:
        """For people, at the end."""
        return f"{passed} times a row with nothing to learn was drawn, and the next one taken"

    def summary(self) -> str:
        """For people."""
        return f"{self.rows} rows, each of which becomes tokens when it is drawn"

    def __len__(self) -> int:
        return self.rows

    def __getitems__(self, keys: Sequence[int]) -> list[Example]:
        made = self.encode(keys)
        return [one for place, found in zip(keys, made, strict=True) for one in found or self.at(place)]

    def at(self, place: int) -> list[Example]:
        """What is learned of a row, or of the next that there is something to learn of. Raises DataError."""
        for tried in range(min(self.rows, PATIENCE)):
            [found] = self.encode([(place + tried) % self.rows])
            if found:
                return found
            self.count()
        raise DataError(
            f"nothing to learn is left of {min(self.rows, PATIENCE)} rows, one after the other from row {place + 1} of "
            f"{self.rows} on, within spec.training.maxLength: raise it"
        )


def seen(media: list[Medium]) -> Example:
    """The column with an example's media, if there are any."""
    return {COLUMN: media} if media else {}


def seen_with(one: Example) -> Example:
    """The column with the media that came with an example, if any did."""
    return {COLUMN: one[COLUMN]} if COLUMN in one else {}


def examples_of(plan: TrainPlan, rows: Sequence[Row], masker: Masker) -> list[list[Example]]:
    """What is learned of the texts of each of `rows`: ids and labels, weights where they are not 1, media."""
    made: list[list[Example]] = [[] for _ in rows]
    for place, row, _, parts in texts(rows, masker, Limit.of(plan)):
        media = seen(media_of(row.messages, row.parts))
        for ids, labels, weights in parts:
            own = {WEIGHTS: weights.tolist()} if (weights != 1).any() else {}
            if own:
                check_weights(plan)
            made[place].append({"input_ids": ids.tolist(), "labels": labels.tolist(), **own, **media})
    return made


def lazy_texts(plan: TrainPlan, rows: Sequence[Row], masker: Masker) -> Lazy:
    """As tokens.tokenize, of rows that are drawn."""
    need_template(rows[:BATCH], masker.tokenizer)
    return Lazy(len(rows), TEXTS, lambda places: examples_of(plan, [rows[at] for at in places], masker))


def lazy_answers(
    plan: TrainPlan, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, rejected: bool = False
) -> Encode:
    """As tokens.split_answers, of rows that are drawn: `prompt`, `answers`, the `row` itself, and its media."""
    need_template(rows[:BATCH], tokenizer)
    masker, limit = Masker(tokenizer, "LastAssistant"), Limit.of(plan)

    def encode(places: Sequence[int]) -> list[list[Example]]:
        drawn = [rows[at] for at in places]
        found = answered(drawn, masker, limit, rejected)
        return [
            [{"prompt": prompt, "answers": answers, "row": drawn[place], **seen(media_of(shown.messages))}]
            if answers
            else []
            for place, shown, _, prompt, answers in found
        ]

    return encode
