"""A process is known by more than its id, and its death is told with the end of its log."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tunesmith_cluster import ClusterError, files
from tunesmith_cluster.processes import Identity, Service, Supervisor, descendants, parse_stat, running


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    supervisor = Supervisor(tmp_path / "pid", tmp_path / "log")
    yield supervisor
    for name in supervisor.started():
        supervisor.stop(name)


def service(command: Sequence[str], ready: bool = True) -> Service:
    return Service("sample", command, is_ready=lambda: ready)


def test_stat_of_a_program_with_parentheses_and_spaces_in_its_name() -> None:
    fields = ["S", "1", *["0"] * 17, "4711", "0"]
    assert parse_stat(f"12 (a) b (c)) {' '.join(fields)}") == ("S", 4711)


def test_another_process_with_the_same_id_is_not_taken_for_ours_and_gets_no_signal() -> None:
    child = subprocess.Popen(["sleep", "60"])
    identity = Identity.of(child.pid)
    assert identity is not None
    assert identity.is_alive()
    for other in (
        replace(identity, start_time=identity.start_time - 1),
        replace(identity, boot_id="earlier"),
    ):
        assert not other.is_alive()
        other.send(signal.SIGKILL)
    assert child.poll() is None
    identity.send(signal.SIGKILL)
    assert child.wait(10) == -signal.SIGKILL


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen(["sleep", "60"])
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, but not yet collected
    assert Identity.of(child.pid) is None
    child.wait()


def test_a_later_supervisor_finds_and_stops_what_an_earlier_one_started(supervisor: Supervisor) -> None:
    supervisor.start(service(["sleep", "60"]))
    later = Supervisor(supervisor.pids, supervisor.logs)
    assert later.is_alive("sample")
    assert later.started() == ["sample"]
    later.stop("sample")
    assert not later.is_alive("sample")
    assert later.started() == []


def marked(marker: str) -> list[int]:
    """The processes that have this word in their command line."""
    return [pid for pid, (_, command) in running().items() if marker in command]


def gone(pids: Callable[[], list[int]]) -> bool:
    """Whether there are none of them within a while."""
    deadline = time.monotonic() + 20
    while pids() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not pids()


def test_a_process_that_cannot_be_noted_down_does_not_start(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nobody would know of it, and it would hold its port: the disk may be full."""
    noted: list[str] = []

    def write(path: Path, content: bytes) -> None:
        noted.append(content.decode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write", write)
    with pytest.raises(OSError, match="No space"):
        supervisor.start(service(["touch", str(tmp_path / "started")]))
    identity = Identity(**json.loads(noted[0]))
    assert gone(lambda: [identity.pid] if identity.is_alive() else [])
    assert not (tmp_path / "started").exists()


KILLED_BEFORE_THE_NOTE = """
import os, pathlib, sys
from tunesmith_cluster import files
from tunesmith_cluster.processes import Service, Supervisor
files.write = lambda *_: os.kill(os.getpid(), 9)
state = pathlib.Path(sys.argv[1])
Supervisor(state / "pid", state / "log").start(Service("sample", ["sleep", sys.argv[2]], lambda: True))
"""


def test_no_process_is_left_by_whoever_is_killed_before_it_is_noted_down(tmp_path: Path) -> None:
    """The next one would start it a second time, and fail where both need the same port or folder."""
    seconds = str(time.time_ns())
    killed = subprocess.run([sys.executable, "-c", KILLED_BEFORE_THE_NOTE, str(tmp_path), seconds], check=False)
    assert killed.returncode == -signal.SIGKILL
    left = marked(seconds)
    try:
        assert gone(lambda: marked(seconds))
    finally:
        for pid in left:
            if identity := Identity.of(pid):
                identity.send(signal.SIGKILL)


def test_a_program_that_is_not_there_is_told(supervisor: Supervisor) -> None:
    absent = service(["/nowhere/etcd"], ready=False)
    supervisor.start(absent)
    with pytest.raises(ClusterError, match=r"(?s)sample died;.*/nowhere/etcd.*not found"):
        supervisor.wait_ready(absent)


def test_what_ignores_a_polite_signal_is_killed(supervisor: Supervisor) -> None:
    ignoring = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    sample = Service(
        "sample",
        [sys.executable, "-c", ignoring],
        lambda: b"\non" in supervisor.log("sample").read_bytes(),
    )
    supervisor.start(sample)
    supervisor.wait_ready(sample, timeout=20)
    supervisor.stop("sample", grace=0.1)
    assert not supervisor.is_alive("sample")


def test_the_death_of_a_process_is_told_with_its_last_words(supervisor: Supervisor) -> None:
    failing = service(["sh", "-c", "sleep 0.2; echo address already in use; exit 1"], ready=False)
    supervisor.start(failing)
    with pytest.raises(ClusterError, match=r"sample died; the end of .*sample\.log:\n(.*\n)*  address already in use"):
        supervisor.wait_ready(failing, timeout=20)


def test_a_process_that_never_gets_ready_is_told(supervisor: Supervisor) -> None:
    slow = service(["sleep", "60"], ready=False)
    supervisor.start(slow)
    with pytest.raises(ClusterError, match="sample runs but is not ready"):
        supervisor.wait_ready(slow, timeout=0)


def test_the_environment_of_the_caller_is_not_passed_on(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid")
    sample = service(["sh", "-c", "env; exec sleep 60"])
    sample = replace(sample, is_ready=lambda: "PATH=" in supervisor.tail("sample"))
    supervisor.start(sample)
    supervisor.wait_ready(sample, timeout=20)
    assert "PROXY" not in supervisor.tail("sample")


def test_descendants() -> None:
    table = {1: (0, ["init"]), 2: (1, ["shim"]), 3: (2, ["pause"]), 4: (3, ["child"]), 5: (1, ["other"])}
    assert descendants({2}, table) == {2, 3, 4}
    assert descendants(set(), table) == set()
