"""What is being made is there as a whole or not at all, and what a kill leaves of it goes away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tunesmith_cluster import Paths, build, environments, partials
from tunesmith_cluster.build import Module
from tunesmith_cluster.environments import OPERATOR


def gone() -> int:
    """The id of a process that has ended."""
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_a_killed_process_was_making_is_removed_and_nothing_else(tmp_path: Path) -> None:
    ended, alive = gone(), os.getpid()
    kept = {f"uv.partial-{alive}", f"etcd.partial-{alive}-0a1b2c3d", f"my.partial-{ended}.txt", "x.partial-one", "bin"}
    for name in (*kept, f"uv.partial-{ended}", f"etcd.partial-{ended}-0a1b2c3d"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / f"go.whl.partial-{ended}").touch()
    (tmp_path / f"link.partial-{ended}").symlink_to(tmp_path / "bin")
    partials.sweep(tmp_path)
    assert names(tmp_path) == kept
    assert names(tmp_path / "bin") == {"file"}


def test_what_is_made_appears_as_a_whole(tmp_path: Path) -> None:
    with partials.made(tmp_path / "sub" / "tool") as draft:
        draft.mkdir()
        (draft / "file").touch()
        assert not (tmp_path / "sub" / "tool").exists()
    assert names(tmp_path / "sub") == {"tool"}
    assert names(tmp_path / "sub" / "tool") == {"file"}


def fail(target: Path) -> None:
    with partials.made(target) as draft:
        draft.mkdir()
        raise ValueError


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        fail(tmp_path / "tool")
    assert names(tmp_path) == set()


def test_what_another_process_made_meanwhile_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "tool"
    with partials.made(target) as draft:
        draft.mkdir()
        target.mkdir()
        (target / "theirs").touch()
    assert names(tmp_path) == {"tool"}
    assert names(target) == {"theirs"}


BUILD = """
import pathlib, sys
from tunesmith_cluster import build
cache, go = map(pathlib.Path, sys.argv[1:])
build.build(cache, build.Module("pause", {"pause": "."}, usual_seconds=1), go)
"""


def test_a_killed_build_leaves_nothing_beyond_the_next_one(tmp_path: Path) -> None:
    """Neither in the cache nor in /tmp, where Go works by default."""
    cache, go, began = tmp_path / "cache", tmp_path / "go", tmp_path / "began"
    go.write_text(f'#!/bin/sh\nmktemp -d "$GOTMPDIR/go-buildXXXX" || exit 1\ntouch {began}\nexec sleep 60\n')
    go.chmod(0o755)
    killed = subprocess.Popen([sys.executable, "-c", BUILD, str(cache), str(go)], start_new_session=True)
    deadline = time.monotonic() + 30
    while not began.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert len(names(cache / "bin")) == 1
    go.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\ntouch "$2"\n')
    module = Module("pause", {"pause": "."}, usual_seconds=1)
    build.build(cache, module, go)
    assert names(cache / "bin") == {module.digest()}


def test_a_half_made_environment_of_another_lock_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = Paths(cache=tmp_path, state=tmp_path)
    half, whole = paths.envs / "operator-000000000000", paths.envs / "operator-111111111111"
    for folder in (half, whole):
        (folder / "bin").mkdir(parents=True)
    (whole / environments.DONE).touch()
    uv = tmp_path / "uv"
    uv.write_text('#!/bin/sh\n[ "$1" = --version ] && echo uv 0.13.9 || mkdir "$UV_PROJECT_ENVIRONMENT"\n')
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    made = environments.ensure(paths, OPERATOR)
    assert names(paths.envs) == {made.name, whole.name, "operator.lock"}


def test_an_environment_is_locked_for_as_long_as_uv_is_at_work_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may outlive whoever was killed and started it."""
    paths = Paths(cache=tmp_path, state=tmp_path)
    uv, held = tmp_path / "uv", tmp_path / "held"
    lock = paths.envs / "operator.lock"
    uv.write_text(
        f"""#!/bin/sh
[ "$1" = --version ] && echo uv 0.13.9 && exit
mkdir "$UV_PROJECT_ENVIRONMENT"
ls -l /proc/$$/fd > {held}
"""
    )
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    environments.ensure(paths, OPERATOR)
    assert f"-> {lock}" in held.read_text()
