"""How long each stage took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.table import Table

from tunesmith_cluster.progress import Reporter


class Stages:
    """A stop-watch with named laps."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self._began = time.monotonic()
        self._laps: list[tuple[str, float | None]] = []

    @contextmanager
    def stage(self, title: str, *, silent: bool = False) -> Iterator[None]:
        """Time a block. It is also shown as a step, unless it shows its own steps (`silent`)."""
        began = time.monotonic()
        if silent:
            yield
        else:
            with self.reporter.step(title):
                yield
        self._laps.append((title, time.monotonic() - began))

    def add(self, title: str, seconds: float | None) -> None:
        """A lap that was timed elsewhere; None if there was nothing to do."""
        self._laps.append((title, seconds))

    def table(self) -> Table:
        """All laps, and the whole. Laps may overlap, so their sum is not the whole."""
        table = Table("stage", title="What took how long", title_justify="left", show_footer=True)
        table.add_column("time", justify="right", footer=duration(time.monotonic() - self._began))
        table.columns[0].footer = "in all"
        for title, seconds in self._laps:
            table.add_row(title, "was there already" if seconds is None else duration(seconds))
        return table


def duration(seconds: float) -> str:
    """3.2 s, or 2 min 5 s."""
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60} s"
