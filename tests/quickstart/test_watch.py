"""Waiting for resources, with a kubectl that tells a story and a clock that jumps."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.quickstart import watch
from tunesmith_cluster.quickstart.resources import Row
from tunesmith_cluster.quickstart.watch import Watcher

PULLING = "pod a-0, container trainer: ImagePullBackOff: back-off"


class Story:
    """Stands for kubectl: every look shows the next state, the last one for ever. A look takes 20 s."""

    def __init__(self, *states: tuple[str, str, str]) -> None:
        self._states, self.looks = states, 0

    def objects(self, namespace: str, *kinds: str) -> list[dict[str, Any]]:
        status, reason, message = self._states[min(self.looks, len(self._states) - 1)]
        self.looks += 1
        condition = {"type": "Succeeded", "status": status, "reason": reason, "message": message}
        times = {"startTime": "2026-01-01T00:00:00Z", "completionTime": "2026-01-01T00:00:30Z"}
        meta = {"name": "a", "generation": 1}
        body = {"observedGeneration": 1, "conditions": [condition], **(times if status == "True" else {})}
        return [{"kind": "MergeJob", "metadata": meta, "status": body}]

    def clock(self) -> float:
        return self.looks * 20.0


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "POLL_SECONDS", 0)


def follow(story: Story, seconds: float = 3600) -> tuple[Watcher, str]:
    output = io.StringIO()
    watcher = Watcher(story, "n", [("MergeJob", "a")], Console(file=output, width=200), story.clock)  # type: ignore[arg-type]
    watcher.wait(seconds)
    return watcher, output.getvalue()


def test_lines_tell_each_change_once() -> None:
    waiting = ("Unknown", "WaitingForReference", "FineTuneJob b has not finished yet")
    watcher, shown = follow(Story(waiting, waiting, ("Unknown", "Running", ""), ("True", "Completed", "")))
    assert [line.strip() for line in shown.splitlines()] == [
        "MergeJob a: WaitingForReference (FineTuneJob b has not finished yet)",
        "MergeJob a: Running",
        "MergeJob a: Completed",
    ]
    assert watcher.took == {"a": 30.0}


def test_what_is_done_at_first_sight_took_no_time() -> None:
    watcher, _ = follow(Story(("True", "Completed", "")))
    assert watcher.took == {"a": None}


def test_a_failure_ends_the_waiting_with_its_message() -> None:
    story = Story(("Unknown", "Running", ""), ("False", "CheckFailed", "logit error 0.5 is above 0.02"))
    with pytest.raises(ClusterError, match=r"MergeJob a failed\. CheckFailed: logit error 0\.5 is above 0\.02"):
        follow(story)
    assert story.looks == 2


def test_a_pod_that_is_held_up_gets_time_but_not_for_ever() -> None:
    story = Story(("Unknown", "Running", PULLING))
    with pytest.raises(ClusterError, match=r"does not get on\. pod a-0, container trainer: ImagePullBackOff"):
        follow(story)
    assert watch.HELD_SECONDS < story.clock() < watch.HELD_SECONDS + 60


def test_a_pod_that_gets_on_is_forgiven() -> None:
    held, free = ("Unknown", "Running", PULLING), ("Unknown", "Running", "")
    follow(Story(*([held] * 8), free, *([held] * 8), ("True", "Completed", "")))


def test_the_deadline_says_what_is_late() -> None:
    with pytest.raises(ClusterError, match=r"not done in time .*MergeJob a: Running"):
        follow(Story(("Unknown", "Running", "")), seconds=100)


def test_the_picture_fits_a_terminal_of_80_columns() -> None:
    rows = [
        Row(
            "ModelDeployment",
            "xiao-huang-merged",
            "WaitingForReference",
            "0/2",
            message="MergeJob m does not exist yet",
        ),
        Row("FineTuneJob", "swift-robot", "Running", "13/20", "0.713", "2m51s", "pod [a] runs"),
        Row("Job", "base-model", "Completed", done=True),
    ]
    output = io.StringIO()
    Console(file=output, width=80).print(watch.picture(rows))
    shown = output.getvalue()
    assert "…" not in shown
    for word in ("ftj", "swift-robot", "13/20", "2m51s", "pod [a] runs", "MergeJob m does not exist yet"):
        assert word in shown
