"""The files of datasets as an endless sequence of rows, of which each process reads a part: where it stands is a few
numbers, from which it goes on.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tunesmith_trainer.data import Reader, Row
from tunesmith_trainer.errors import DataError, InternalError
from tunesmith_trainer.files import read_file

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Seconds between the tries to read a file on a file system that fails."""


@dataclass(frozen=True)
class File:
    """A file, and how its rows are read."""

    path: Path
    uri: str
    reader: Reader


@dataclass(frozen=True)
class Place:
    """Where a reader stands in an epoch."""

    epoch: int = 0
    file: int = 0
    """Of the epoch's order."""
    row: int = 0
    """Of the file: those before it are read."""
    passed: int = 0
    """Rows of the epoch that are read, or passed over as other parts'."""


@dataclass(frozen=True)
class Share:
    """The rows of files that one of `parts` reads: whole files where they can be dealt out evenly, else rows in turn.
    The parts have no row in common, and all rows together.
    """

    files: Sequence[File]
    seed: str
    part: int = 0
    parts: int = 1

    @property
    def by_file(self) -> bool:
        """Whether whole files are dealt out."""
        return len(self.files) % self.parts == 0

    def order(self, epoch: int) -> list[File]:
        """The files of an epoch, in its order."""
        own = self.files[self.part :: self.parts] if self.by_file else self.files
        return random.Random(f"{self.seed}:{epoch}").sample(list(own), len(own))

    def has(self, passed: int) -> bool:
        """Whether a row belongs to this part."""
        return self.by_file or passed % self.parts == self.part


class Cursor:
    """Reads a share, epoch after epoch, from a place on. `left_out` is told of rows that are not readable and not
    wanted.
    """

    def __init__(self, share: Share, at: Place, left_out: Callable[[str], None]) -> None:
        self.share, self.at, self.left_out = share, at, left_out
        self.rows = self.read()

    def take(self, count: int) -> list[Row]:
        """The next rows: `count`, or those that are left of the epoch, at least one. Raises DataError."""
        for _ in (0, 1):  # the epoch may have ended with the row before
            found: list[Row] = []
            while len(found) < count and (row := next(self.rows)):
                found.append(row)
            if found:
                return found
        share = self.share
        raise DataError(
            f"{share.files[0].reader.label}: part {share.part + 1} of {share.parts} of its {len(share.files)} files "
            "has no row to learn from: give more rows, or use fewer processes"
        )

    def read(self) -> Iterator[Row | None]:
        """All rows; None at the end of each epoch."""
        while True:
            for number, file in enumerate(self.share.order(self.at.epoch)):
                if number >= self.at.file:
                    yield from self.rows_of(file)
                    self.at = replace(self.at, file=number + 1, row=0)
            self.at = Place(self.at.epoch + 1)
            yield None

    def rows_of(self, file: File) -> Iterator[Row]:
        """The rows of a file that are left. Where the file system fails it is tried again for a while."""
        where, waits = f"{file.reader.label} {file.uri}", iter(WAITS)
        while True:
            try:
                with closing(read_file(file.path, where, file.uri)) as found:
                    for number, columns in islice(found, self.at.row, None):
                        own = self.share.has(self.at.passed)
                        row = self.row(file, f"{where} row {number}", columns) if own else None
                        self.at = replace(self.at, row=self.at.row + 1, passed=self.at.passed + 1)
                        if row:
                            yield row
                return
            except DataError as error:
                cause = error.__cause__
                if not (isinstance(cause, OSError) and cause.errno):  # it is the file's content
                    raise
                seconds = next(waits, None)
                if seconds is None:
                    raise InternalError(f"{error}; it was tried for {sum(WAITS):.0f} s") from error
                print(f"{error}; it is tried again in {seconds:.0f} s", flush=True)
                time.sleep(seconds)

    def row(self, file: File, where: str, columns: dict[str, Any] | DataError) -> Row | None:
        """The row, or None where it is left out."""
        try:
            if isinstance(columns, DataError):
                raise columns
            return file.reader.row(where, columns, file.path.parent)
        except DataError as error:
            if file.reader.dataset.strict:
                raise
            self.left_out(str(error))
            return None
