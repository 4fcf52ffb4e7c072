"""Debian's Prometheus and promtool, unpacked into the cache: installing the package would start a service."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.paths import Paths

PACKAGE = "prometheus"


def program(paths: Paths, name: str) -> Path:
    """`prometheus` or `promtool`: of this machine, else out of the package."""
    if found := shutil.which(name):
        return Path(found)
    folder = paths.envs.parent / PACKAGE
    if not (folder / "usr" / "bin" / name).exists():
        _unpack(folder)
    return folder / "usr" / "bin" / name


def _unpack(folder: Path) -> None:
    if shutil.which("apt-get") is None:
        raise ClusterError(f"this machine has no apt-get: put {PACKAGE} and promtool on PATH")
    with TemporaryDirectory(dir=folder.parent) as download:
        _run("apt-get", "download", PACKAGE, folder=download)
        [package] = Path(download).glob("*.deb")
        unpacked = Path(download) / "files"
        _run("dpkg-deb", "-x", str(package), str(unpacked), folder=download)
        if not folder.exists():  # else another process was faster
            os.rename(unpacked, folder)


def _run(*command: str, folder: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"`{' '.join(command)}` failed:\n{done.stderr[-2000:]}")
