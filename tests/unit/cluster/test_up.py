"""What `up` does around its processes, with others in their place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tunesmith_cluster import Cluster, Paths, components
from tunesmith_cluster.processes import Service, Supervisor


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(cache=tmp_path / "cache", state=tmp_path / "state")


@pytest.fixture
def supervisor(paths: Paths) -> Iterator[Supervisor]:
    supervisor = Supervisor(paths.pids, paths.logs)
    yield supervisor
    for name in supervisor.started():
        supervisor.stop(name)


def test_what_a_killed_up_had_just_started_is_waited_for_before_it_is_used(
    paths: Paths, supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = tmp_path / "ready"
    slow = Service("slow", ["sh", "-c", f"sleep 1; touch {ready}; exec sleep 60"], ready.exists)
    used: list[bool] = []
    monkeypatch.setattr(components, "when_ready", lambda *_: used.append(ready.exists()))
    monkeypatch.setattr(Cluster, "_wait_usable", lambda *_: None)
    supervisor.start(slow)
    Cluster(paths)._start([slow], [], [])
    assert used == [True]
