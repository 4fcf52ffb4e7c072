"""In which order rows are learned from: by the seed and the epoch alone, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class Order(Sampler[int]):
    """A new order for each epoch. The last step is filled up with the first rows of the same order: every step has a
    whole global batch, which any number of processes can share. Where `copies` processes side by side work on the same
    `micro` rows, these come as often. Not `shuffled`, rows come as they are numbered.

    With `lengths`, tokens of each row, a step's rows come the longest first: micro-batches are of rows as long as each
    other, which little padding fills up, and processes side by side have as much to do. Which rows a step has stays.
    """

    def __init__(
        self,
        rows: int,
        batch: int,
        seed: int,
        micro: int = 1,
        copies: int = 1,
        shuffled: bool = True,
        lengths: Sequence[int] | None = None,
    ) -> None:
        self.rows, self.batch, self.seed, self.micro, self.copies = rows, batch, seed, micro, copies
        self.shuffled, self.lengths = shuffled, lengths
        self.steps = -(-rows // batch)
        """Steps of an epoch."""
        self.epoch = 0

    def __len__(self) -> int:
        """Rows of an epoch, those that fill it up included."""
        return self.steps * self.batch * self.copies

    def __iter__(self) -> Iterator[int]:
        """The rows of the epoch at hand."""
        generator = torch.Generator()
        generator.manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.rows, generator=generator).tolist() if self.shuffled else range(self.rows)
        for start in range(0, self.steps * self.batch, self.batch):
            rows = [order[position % self.rows] for position in range(start, start + self.batch)]
            if self.lengths is not None and self.micro < self.batch:
                rows.sort(key=self.lengths.__getitem__, reverse=True)
            for first in range(0, self.batch, self.micro):
                yield from rows[first : first + self.micro] * self.copies


class Rounds(Sampler[list[int]]):
    """Rows to evaluate on, each once, as the batches of one of several processes, which have as many of them: whole
    batches, one smaller one, and what is left in batches that are those of all processes. Nothing fills them up.
    """

    def __init__(self, rows: int, size: int, process: int, processes: int) -> None:
        whole = rows - rows % (size * processes)
        each = (rows - whole) // processes
        own = [(begin, size) for begin in range(0, whole, size * processes)] + ([(whole, each)] if each else [])
        left = range(whole + each * processes, rows)
        self.batches = [list(range(begin + process * one, begin + (process + 1) * one)) for begin, one in own]
        shared = [list(left[begin : begin + size]) for begin in range(0, len(left), size)]
        self.rows = [len(batch) * processes for batch in self.batches] + [len(batch) for batch in shared]
        """Of all processes together, by batch."""
        self.copies = [1] * len(self.batches) + [processes] * len(shared)
        """Processes that have the same rows, by batch."""
        self.batches += shared

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        """The batches."""
        return iter(self.batches)
