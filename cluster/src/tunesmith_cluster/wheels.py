"""Programs that come as wheels from PyPI, each in a folder of the cache that is named by its version."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tunesmith_cluster import environments, partials, reasons
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.paths import Paths


def folder(cache: Path, requirement: str) -> Path:
    """Where the wheel of `name==version` is, or will be once installed."""
    return cache / requirement.replace("==", "-")


def ensure(paths: Paths, requirement: str, instead: str) -> Path:
    """The wheel's folder, in which it is installed if missing. Raises ClusterError as `install` does."""
    target = folder(paths.cache, requirement)
    if not target.exists():
        install(paths, requirement, instead)
    return target


def install(paths: Paths, requirement: str, instead: str) -> None:
    """Install the wheel as a whole, or not at all. Raises ClusterError, which says what to do `instead`."""
    target = folder(paths.cache, requirement)
    pip = [str(environments.find_uv(paths)), "pip", "install", f"--python={sys.executable}"]
    with partials.made(target) as draft:
        done = subprocess.run(
            [*pip, "--quiet", "--no-deps", f"--target={draft}", requirement],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            why = reasons.of(done.stdout, draft, "the package index")
            raise ClusterError(
                f"could not install {requirement} from PyPI: {why}; or {instead}:\n{done.stdout[-2000:]}"
            )
