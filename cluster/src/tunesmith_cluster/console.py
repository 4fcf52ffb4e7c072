"""The web console's pages (operator/console), built and checked in the cache.

`python -m tunesmith_cluster.console build` builds them and prints where they are;
`python -m tunesmith_cluster.console check` looks at types and style, and runs their unit tests.

A build is named by its sources, the packages by package-lock.json: each is made once.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tunesmith_cluster import messages, nodejs, partials
from tunesmith_cluster.environments import ROOT
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.nodejs import Node
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.progress import Reporter

SOURCES = ROOT / "operator" / "console"
PACKAGES = ("package.json", "package-lock.json", ".npmrc")
MADE = frozenset({"node_modules", "dist", "test-results"})
DONE = ".done"


def sources() -> list[Path]:
    """The files that pages are made of, sorted."""
    return sorted(
        path for path in SOURCES.rglob("*") if path.is_file() and not MADE.intersection(path.relative_to(SOURCES).parts)
    )


def digest(paths: Sequence[Path]) -> str:
    """Names files by what they are called and hold."""
    found = hashlib.sha256()
    for path in paths:
        found.update(f"{path.relative_to(SOURCES)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()[:12]


def workspace(paths: Paths, reporter: Reporter) -> tuple[Path, Node]:
    """A copy of the sources beside their packages, and the Node.js that fits them."""
    node = nodejs.ensure(paths, reporter)
    packages = _packages(paths, node, reporter)
    target = paths.cache / "console" / f"sources-{digest(sources())}"
    with _locked(paths):
        if not target.exists():
            with partials.made(target) as draft:
                for path in sources():
                    copy = draft / path.relative_to(SOURCES)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, copy)
                (draft / "node_modules").symlink_to(packages / "node_modules")
    return target, node


def pages(paths: Paths, reporter: Reporter) -> Path:
    """The folder of the built pages."""
    folder, node = workspace(paths, reporter)
    with _locked(paths):
        if not (folder / "dist" / DONE).exists():
            with reporter.step("build the console's pages", usual_seconds=10):
                _run(node.command("run", "build"), folder, node)
            (folder / "dist" / DONE).touch()
    return folder / "dist"


def check(paths: Paths, reporter: Reporter) -> None:
    """Types, style and unit tests. Raises ClusterError with what they said."""
    folder, node = workspace(paths, reporter)
    for script in ("check", "test"):
        with reporter.step(f"the console's pages: npm run {script}", usual_seconds=15):
            _run(node.command("run", script), folder, node)


def _packages(paths: Paths, node: Node, reporter: Reporter) -> Path:
    wanted = [SOURCES / name for name in PACKAGES]
    target = paths.cache / "console" / f"packages-{digest(wanted)}"
    with _locked(paths):
        if not (target / DONE).exists():
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            for path in wanted:
                shutil.copyfile(path, target / path.name)
            with reporter.step("install the console's npm packages", usual_seconds=20):
                # No package needs to run anything of its own when it is installed.
                _run(node.command("ci", "--ignore-scripts"), target, node)
            (target / DONE).touch()
    return target


def _run(command: Sequence[str], folder: Path, node: Node) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        env=node.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ClusterError(f"`npm {' '.join(command[2:])}` failed in {folder}:\n{done.stdout[-6000:]}")


@contextmanager
def _locked(paths: Paths) -> Iterator[None]:
    folder = paths.cache / "console"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str]) -> None:
    """The two commands that the module's docstring shows."""
    paths = Paths.from_environment()
    match arguments:
        case ["build"]:
            print(pages(paths, Reporter()))
        case ["check"]:
            check(paths, Reporter())
        case _:
            sys.exit("usage: python -m tunesmith_cluster.console build|check")


if __name__ == "__main__":
    with messages.shown():
        main(sys.argv[1:])
