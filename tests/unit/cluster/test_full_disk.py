"""A full disk is told in one message, with the path, the room that is left, and what to do: on real, small disks."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tunesmith_cluster import ClusterError, disk

_MOUNTED = 'mount -t tmpfs -o "$0" tmpfs "$1" && shift && exec "$@"'


def on_a_disk(options: str, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command which alone sees `folder` as a disk with the given options. It has no network to change, either."""
    variables = {"TUNESMITH_CACHE": str(folder), "TUNESMITH_CLUSTER_STATE": str(folder / "state")}
    return subprocess.run(
        ["unshare", "--net", "--mount", "--propagation=private", "sh", "-c", _MOUNTED, options, str(folder), *command],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if shutil.which("unshare") is None or on_a_disk("size=1m", tmp_path, "true").returncode:
        pytest.skip("only where this user may mount a disk")
    return tmp_path


def test_up_says_which_disk_is_full(folder: Path) -> None:
    done = on_a_disk("nr_inodes=1", folder, sys.executable, "-m", "tunesmith_cluster", "up")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"error: the disk of {folder}/cluster.lock is full" in done.stderr
    assert "and no further file): make room there, or choose another disk by TUNESMITH_CACHE" in done.stderr


CONFIGURATION = "from tunesmith_cluster import files; files.write(folder / 'etcd.yaml', bytes(100_000))"
LOG = """
from tunesmith_cluster.processes import Service, Supervisor
logs = folder / "log"; logs.mkdir()
(logs / "etcd.log").write_bytes(bytes(4096))
Supervisor(folder / "pid", logs).start(Service("etcd", ["sleep", "60"], lambda: True))
"""
IMAGE = """
from pathlib import PurePosixPath
from tunesmith_cluster import oci
(folder / "source").mkdir(); (folder / "source" / "file").write_bytes(bytes(4096))
entries = oci.copied(folder / "source", PurePosixPath("/app"))
oci.make_image("app:1", entries, oci.Config(), folder / "layer.tar")
"""


@pytest.mark.parametrize(
    ("what", "named"),
    [(CONFIGURATION, "/etcd.yaml"), (LOG, ""), (IMAGE, "")],
    ids=["a configuration", "a log", "an image"],
)
def test_whatever_is_written_the_path_and_the_room_are_named(folder: Path, what: str, named: str) -> None:
    script = "import pathlib, sys; from tunesmith_cluster import messages; folder = pathlib.Path(sys.argv[1])\n"
    script += "with messages.shown():\n" + "".join(f"    {line}\n" for line in what.splitlines())
    done = on_a_disk("size=8k", folder, sys.executable, "-c", script, str(folder))
    assert done.returncode == 1
    assert re.fullmatch(
        rf"error: the disk of {folder}{named}\S* is full \(\d MB free\): .* then run this again\n", done.stderr
    )


def test_another_error_of_the_system_is_no_full_disk() -> None:
    with pytest.raises(PermissionError), disk.told(Path("/")):
        raise PermissionError(errno.EACCES, "Permission denied", "/x")


def test_a_copy_of_many_files_says_it_in_words(tmp_path: Path) -> None:
    told = shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")])
    with pytest.raises(ClusterError, match=f"the disk of {tmp_path} is full"), disk.told(tmp_path):
        raise told


@pytest.mark.parametrize(("number", "text"), [(3.14e9, "3.1 GB"), (12e6, "12 MB"), (0, "0 MB")])
def test_sizes(number: float, text: str) -> None:
    assert disk.size(number) == text
