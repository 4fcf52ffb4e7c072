"""Waiting for the resources: a live table on a terminal, lines elsewhere; an end as soon as one cannot succeed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.quickstart.kubectl import Kubectl
from tunesmith_cluster.quickstart.resources import PLURALS, SHORT_NAMES, Row, row

POLL_SECONDS = 1.5
LINE_SECONDS = 10.0
"""In a log, steps of a training are told no more often than this."""
HELD_SECONDS = 180.0
"""How long a pod may be held up, for example by an image that cannot be pulled."""

Names = list[tuple[str, str]]
"""(kind, name), in the order in which they are shown."""


class Watcher:
    """Follows some resources of a namespace until all are done."""

    def __init__(
        self, kubectl: Kubectl, namespace: str, names: Names, console: Console, clock: Callable[[], float]
    ) -> None:
        self._kubectl, self._namespace, self._names = kubectl, namespace, names
        self._console, self._clock = console, clock
        self._began: dict[str, float] = {}
        self._held: dict[str, tuple[str, float]] = {}
        self._told: dict[str, tuple[str, str, float]] = {}
        self.took: dict[str, float | None] = {}
        """Name -> seconds from its beginning to its end; None for what was done at the first look."""

    def wait(self, seconds: float) -> None:
        """Return when all are done. Raises ClusterError with the message of the first that failed."""
        deadline = self._clock() + seconds
        first = True
        with Live(console=self._console, auto_refresh=False, transient=False) as live:
            if not self._console.is_terminal:
                live.stop()
            while True:
                rows = self._rows()
                if self._console.is_terminal:
                    live.update(picture(rows), refresh=True)
                else:
                    self._tell(rows)
                self._clock_in(rows, first)
                self._give_up(rows, deadline)
                if all(one.done for one in rows):
                    return
                first = False
                time.sleep(POLL_SECONDS)

    def _rows(self) -> list[Row]:
        found = {
            (item["kind"], item["metadata"]["name"]): row(item)
            for item in self._kubectl.objects(self._namespace, *PLURALS)
        }
        return [found.get(name) or Row(*name) for name in self._names]

    def _clock_in(self, rows: Iterable[Row], first: bool) -> None:
        now = self._clock()
        for one in rows:
            if not one.waits:
                self._began.setdefault(one.name, now)
            if one.done and one.name not in self.took:
                seconds = one.seconds if one.seconds is not None else now - self._began[one.name]
                self.took[one.name] = None if first else seconds

    def _give_up(self, rows: Iterable[Row], deadline: float) -> None:
        now = self._clock()
        for one in rows:
            if one.failure:
                raise ClusterError(f"{one.kind} {one.name} failed. {one.failure}")
            if one.held is None:
                self._held.pop(one.name, None)
                continue
            held, since = self._held.setdefault(one.name, (one.held, now))
            if held != one.held:
                self._held[one.name] = (one.held, now)
            elif now - since > HELD_SECONDS:
                raise ClusterError(f"{one.kind} {one.name} does not get on. {one.message}")
        if now > deadline:
            late = "; ".join(one.line() for one in rows if not one.done)
            raise ClusterError(f"not done in time (see --timeout): {late}")

    def _tell(self, rows: Iterable[Row]) -> None:
        now = self._clock()
        for one in rows:
            line = one.line()
            state = f"{one.status} {one.message} {one.held}"
            was, step, when = self._told.get(one.name, ("", "", 0.0))
            moved = one.step != step and now - when >= LINE_SECONDS
            if state != was or moved:
                self._told[one.name] = (state, one.step, now)
                self._console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def picture(rows: Iterable[Row]) -> RenderableType:
    """What is shown on a terminal: a table narrow enough for 80 columns, and below it what is waited for."""
    rows = list(rows)
    table = Table("kind", "name", "status", "step", "loss", "eta", box=box.SIMPLE_HEAD)
    for one in rows:
        style = "green" if one.done else "red" if one.failure else "dim" if one.waits else "yellow"
        status = Text(one.status, style=style)
        table.add_row(SHORT_NAMES[one.kind], one.name, status, one.step, one.loss, one.eta)
    notes = [Text(f"  {one.name}: {one.message}", "dim") for one in rows if one.message and not one.done]
    return Group(table, *notes)
