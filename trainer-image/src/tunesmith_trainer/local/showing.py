"""What a terminal shows of a run: a progress bar with loss, speed and time, and the lines that are no step's."""

from __future__ import annotations

import re
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from tunesmith.training.report import Report, duration

STEP = re.compile(r"step \d+/\d+ ")


class Quiet:
    """Shows nothing."""

    stopping = False
    """Whether the run was asked to stop."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def say(self, text: str) -> None:
        """A line of our own."""

    def line(self, text: str) -> None:
        """A line of the processes."""

    def update(self, report: Report | None) -> None:
        """How far it is."""


class Shown(Quiet):
    """On a terminal the bar stands below the lines, and in a file all lines stand without it."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(soft_wrap=True, highlight=False)
        self.bar = Progress(
            TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"),
            console=self.console, disable=not self.console.is_terminal, transient=False,
        )  # fmt: skip
        self.task: Any = None

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the bar as it is."""
        self.bar.stop()

    def say(self, text: str) -> None:
        """A line of our own."""
        self.console.print(text, markup=False, soft_wrap=True)

    def line(self, text: str) -> None:
        """A line of the processes; on a terminal the bar says what those of steps say."""
        if not (self.console.is_terminal and STEP.match(text)):
            self.say(text)

    def update(self, report: Report | None) -> None:
        """Move the bar."""
        if report is None or not report.total_steps:
            return
        if self.task is None:
            self.task = self.bar.add_task("", total=report.total_steps, text="")
        self.bar.update(self.task, completed=report.step, total=report.total_steps, text=words(report))


def words(report: Report) -> str:
    """Loss, speed and time left, as far as they are known."""
    said = [
        f"loss {report.loss:.4f}" if report.loss is not None else "",
        f"{report.tokens_per_second:.0f} tokens/s" if report.tokens_per_second else "",
        f"eta {duration(report.eta_seconds)}" if report.eta_seconds is not None else "",
    ]
    return "  ".join(part for part in said if part)
