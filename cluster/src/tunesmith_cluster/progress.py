"""Telling people what goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class Reporter:
    """Shows steps with their elapsed time: live on a terminal, as plain lines elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)

    @contextmanager
    def step(self, title: str, usual_seconds: int | None = None) -> Iterator[None]:
        """Show a step while the block runs, and how long it took."""
        usually = f" (usually {_duration(usual_seconds)})" if usual_seconds else ""
        started = time.monotonic()
        if self._console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
            with Progress(*columns, console=self._console, transient=True) as progress:
                progress.add_task(f"{title}{usually}", total=None)
                yield
        else:
            if usual_seconds:  # a log should say beforehand why nothing comes for a while
                self.say(f"… {title}{usually}")
            yield
        self.say(f"✓ {title} [{_duration(time.monotonic() - started)}]")

    def say(self, text: str) -> None:
        """Show a line."""
        self._console.print(text, markup=False, soft_wrap=True)


class Silent(Reporter):
    """Shows nothing: for use as a library."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60} s"
