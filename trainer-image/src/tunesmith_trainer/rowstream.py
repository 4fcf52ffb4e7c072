"""Datasets that are never whole anywhere: rows are read, shuffled within a window, and made into tokens as they are
learned from.

Examples are numbered through the whole run, as the micro-batches of its steps hold them one after the other. They come
from lanes, as many as the run had processes when it began, which take turns by its micro-batches. A lane reads a share
of the rows, a block at a time, and shuffles what it makes of a block. So which example has which number does not depend
on who asks for it: any number of processes learns the same. Where a lane stands is the place of its block's first row
(`Mark`): it travels with the batch, and into the checkpoint, from which the block is read again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunesmith.training.plan import TrainPlan

from tunesmith_trainer.chat import need_template
from tunesmith_trainer.cursor import Cursor, File, Place, Share
from tunesmith_trainer.data import Reader, Row
from tunesmith_trainer.drawn import PATIENCE, TEXTS, Drawn, Example, examples_of
from tunesmith_trainer.errors import DataError
from tunesmith_trainer.files import data_files
from tunesmith_trainer.masks import BATCH, Masker

MARK = "mark"
LISTED = 10
"""Rows left out that are printed by each process."""
Make = Callable[[Sequence[Row]], list[list[Example]]]
"""Rows -> what is learned of each."""
Pack = Callable[[list[Example]], list[Example]]
State = dict[str, Any]


@dataclass(frozen=True)
class Mark:
    """Where a lane stands."""

    lane: int
    first: int
    """Examples of the lane before this block."""
    block: int
    """Its number in the lane."""
    places: tuple[Place, ...]
    """Of its first row in each share."""

    @classmethod
    def of(cls, found: dict[str, Any]) -> Mark:
        """Of `asdict`'s."""
        return cls(**{**found, "places": tuple(Place(**one) for one in found["places"])})


class Lane:
    """Examples one after the other, from a mark on."""

    def __init__(self, stream: RowStream, mark: Mark) -> None:
        self.stream, self.mark = stream, mark
        shares = stream.shares(mark.lane)
        self.cursors = [Cursor(*one, stream.leave_out) for one in zip(shares, mark.places, strict=True)]
        self.examples = self.read()

    def example(self, number: int) -> Example:
        """An example by its number in the lane, none before the block's. Blocks before it are read and passed over."""
        assert number >= self.mark.first
        empty = 0
        while number >= self.mark.first + len(self.examples):
            empty = 0 if self.examples else empty + self.stream.block
            if empty >= PATIENCE:
                raise DataError(
                    f"nothing to learn is left of {empty} rows, one after the other, within spec.training.maxLength: "
                    "raise it"
                )
            places = tuple(cursor.at for cursor in self.cursors)
            self.mark = Mark(self.mark.lane, self.mark.first + len(self.examples), self.mark.block + 1, places)
            self.examples = self.read()
        return self.examples[number - self.mark.first]

    def read(self) -> list[Example]:
        """The block's examples, shuffled."""
        draw = random.Random(f"{self.stream.seed}:{self.mark.lane}:{self.mark.block}")
        if len(self.cursors) == 1:
            rows = self.cursors[0].take(self.stream.block)
        else:
            rows = []
            chosen = draw.choices(range(len(self.cursors)), self.stream.weights, k=self.stream.block)
            for number, cursor in enumerate(self.cursors):
                wanted = len(rows) + chosen.count(number)
                while len(rows) < wanted:
                    rows += cursor.take(wanted - len(rows))
        made = self.stream.make(rows)
        self.stream.count(made.count([]))
        examples = self.stream.pack([one for found in made for one in found])
        draw.shuffle(examples)
        return examples


class RowStream(Drawn):
    """The examples of a run, by number."""

    def __init__(self, plan: TrainPlan, columns: Sequence[str], make: Make, pack: Pack = list) -> None:
        super().__init__(columns)
        training = plan.training
        assert training.max_steps
        self.examples = training.max_steps * training.global_batch_size
        self.make, self.pack, self.block, self.seed = make, pack, training.shuffle_buffer_size, training.seed
        self.lanes, self.unit = plan.data_parallel, training.micro_batch_size
        self.marks: dict[int, Mark] = {}
        """Where lanes begin, once a checkpoint says so."""
        self.open: dict[int, Lane] = {}
        files = [
            [File(path, uri, Reader(label, dataset, plan.method.type)) for path, uri in data_files(dataset, label)]
            for number, dataset in enumerate(plan.datasets)
            for label in (f"datasets[{number}]",)
        ]
        self.weights = [dataset.weight or 1.0 for dataset in plan.datasets]
        if not any(dataset.weight for dataset in plan.datasets):  # one sequence, of the files of all
            self.weights, files = [1.0], [[file for found in files for file in found]]
        self.files = files
        self.example(0)  # what is wrong with all rows is told before the model is loaded
        self.counts.zero_()

    def __len__(self) -> int:
        return self.examples

    @staticmethod
    def told(passed: int) -> str:
        """For people, at the end."""
        return f"{passed} rows left out, as they could not be read or had nothing to learn"

    def summary(self) -> str:
        """For people."""
        count = sum(map(len, self.files))
        return f"rows are streamed from {count} file(s), {self.block} at a time, in {self.lanes} lane(s)"

    def shares(self, lane: int) -> list[Share]:
        """What a lane reads."""
        return [Share(files, f"{self.seed}:{number}", lane, self.lanes) for number, files in enumerate(self.files)]

    def leave_out(self, reason: str) -> None:
        """A row cannot be read and is not wanted."""
        self.count()
        if self.passed <= LISTED:
            print(f"left out: {reason}", flush=True)

    def example(self, number: int) -> Example:
        """An example, with the mark from which its lane leads to it."""
        turn, place = divmod(number, self.unit)
        round_, lane = divmod(turn, self.lanes)
        at = round_ * self.unit + place
        if lane not in self.open or at < self.open[lane].mark.first:
            begin = Mark(lane, 0, 0, (Place(),) * len(self.files))
            self.open[lane] = Lane(self, self.marks.get(lane, begin))
        found = self.open[lane].example(at)
        return {**found, MARK: self.open[lane].mark}

    def __getitems__(self, keys: Sequence[int]) -> list[Example]:
        return [self.example(key) for key in keys]

    def state(self, marks: Sequence[Mark]) -> State:
        """What a checkpoint keeps: of each lane the earliest of its marks, else the one that this run began with."""
        found = dict(self.marks)
        for mark in sorted(marks, key=lambda mark: mark.first, reverse=True):
            found[mark.lane] = mark
        return {"lanes": self.lanes, "unit": self.unit, "marks": [asdict(mark) for mark in found.values()]}

    def go_on(self, state: State) -> None:
        """Begin where a checkpoint was written, with the lanes of its run."""
        self.lanes, self.unit = state["lanes"], state["unit"]
        self.marks = {mark.lane: mark for mark in map(Mark.of, state["marks"])}
        self.close()

    def close(self) -> None:
        """Forget what was read: another process will read on."""
        self.open.clear()


def stream_texts(plan: TrainPlan, masker: Masker, pack: Pack = list) -> RowStream:
    """As tokens.tokenize, of rows that are streamed."""

    def make(rows: Sequence[Row]) -> list[list[Example]]:
        need_template(rows, masker.tokenizer)
        batches = (rows[begin : begin + BATCH] for begin in range(0, len(rows), BATCH))
        return [found for batch in batches for found in examples_of(plan, batch, masker)]

    return RowStream(plan, TEXTS, make, pack)


class Marked:
    """A collator that keeps the marks of a batch's examples beside another's tensors."""

    def __init__(self, inner: Callable[[list[Example]], dict[str, Any]]) -> None:
        self.inner = inner

    def __call__(self, examples: list[Example]) -> dict[str, Any]:
        """A batch."""
        marks = {one[MARK].lane: one[MARK] for one in examples}
        batch = self.inner([{name: value for name, value in one.items() if name != MARK} for one in examples])
        return {**batch, MARK: list(marks.values())}
