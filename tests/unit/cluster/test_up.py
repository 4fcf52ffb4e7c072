"""What `up` does around its processes, with others in their place."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tunesmith_cluster import Cluster, ClusterError, Paths, components
from tunesmith_cluster.processes import Service, Supervisor


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(cache=tmp_path / "cache", state=tmp_path / "state")


@pytest.fixture(autouse=True)
def _no_change_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is broken: there is one pod network, which the cluster that somebody uses has, too."""
    for name in ("_build", "_configure", "_clear_lost_nodes"):
        monkeypatch.setattr(Cluster, name, lambda *_: pytest.fail("a test would change this machine"))


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


def test_up_removes_what_a_killed_one_was_making(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    folders = (paths.cache, paths.cache / "bin", paths.images)
    for folder in folders:
        (folder / f"x.partial-{ended.pid}-0a1b2c3d").mkdir(parents=True)

    def stop(*_: object) -> None:
        raise ClusterError("far enough")

    monkeypatch.setattr(components, "services", lambda *_, **__: [])
    monkeypatch.setattr(Cluster, "_build", stop)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(ClusterError, match="far enough"):
        Cluster(paths).up()
    assert [path for folder in folders for path in folder.glob("*.partial-*")] == []


def test_a_taken_port_is_told_before_anything_is_built(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[object] = []
    monkeypatch.setattr(Cluster, "_build", lambda *given: built.append(given))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        etcd = Service("etcd", ["sleep", "60"], lambda: True, listens=[("127.0.0.1", port)])
        monkeypatch.setattr(components, "services", lambda *_, **__: [etcd])
        for look in (Cluster(paths).up, Cluster(paths).require_ports):
            with pytest.raises(ClusterError, match=rf"etcd needs port {port}, which process \d+ \(.*\) holds: end it"):
                look()
    assert built == []
