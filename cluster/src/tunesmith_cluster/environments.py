"""Python environments in the cache: what containers of the local cluster see, and what tests run in.

An environment holds the packages of uv.lock and nothing of the checkout: the workspace's own packages come by
PYTHONPATH or are copied into an image. Thus it is named by the lock, made once, and never changed.

`python -m tunesmith_cluster.environments path operator` makes one and prints where it is;
`python -m tunesmith_cluster.environments run trainer -m pytest tests/trainer` runs its Python.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tunesmith_cluster import messages, partials, reasons
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.progress import Reporter, Silent

ROOT = Path(__file__).resolve().parents[3]
"""The checkout."""
SOURCES = ("operator/src", "cluster/src", "trainer-image/src")
UV_VERSION = "0.13.9"
DONE = ".done"


@dataclass(frozen=True, slots=True)
class Environment:
    """A selection of uv.lock's packages."""

    name: str
    selection: tuple[str, ...]
    """Arguments of `uv sync`."""
    usual_seconds: int
    """With empty caches; said to the user, nothing else."""


OPERATOR = Environment("operator", ("--package", "tunesmith", "--no-dev"), usual_seconds=10)
TRAINER = Environment("trainer", ("--only-group", "trainer"), usual_seconds=300)
"""Also the engine's: vLLM is in it."""
ENVIRONMENTS = {environment.name: environment for environment in (OPERATOR, TRAINER)}


def folder(paths: Paths, environment: Environment, lock: Path = ROOT / "uv.lock") -> Path:
    """Where the environment is, or will be once made."""
    digest = hashlib.sha256(lock.read_bytes())
    digest.update("\0".join([*environment.selection, str(interpreter())]).encode())
    return paths.envs / f"{environment.name}-{digest.hexdigest()[:12]}"


def interpreter() -> Path:
    """The Python this one comes from. Containers see it: `node.shown_in_containers` mounts its folder."""
    return Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")


def ensure(paths: Paths, environment: Environment, reporter: Reporter | None = None) -> Path:
    """Make the environment unless it is there already, and return its folder."""
    target = folder(paths, environment)
    if (target / DONE).exists():
        return target
    reporter = reporter or Silent()
    paths.envs.mkdir(parents=True, exist_ok=True, mode=0o755)
    with _locked(paths.envs / f"{environment.name}.lock") as lock:
        if not (target / DONE).exists():  # else another process made it meanwhile
            title = f"install the {environment.name}'s Python packages"
            with reporter.step(title, environment.usual_seconds):
                _build(target, environment, find_uv(paths), lock)
    return target


class Installation:
    """An environment that another process makes: unlike a thread, it can be ended, with the uv that it started."""

    def __init__(self, paths: Paths, environment: Environment) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tunesmith_cluster.environments", "path", environment.name],
            env={**os.environ, "TUNESMITH_CACHE": str(paths.cache)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def is_done(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def wait(self) -> None:
        """Until it has ended. Raises ClusterError with its message if it failed."""
        _, said = self._process.communicate()
        if self._process.returncode:
            raise ClusterError((said.partition("error: ")[2] or said).strip())

    def stop(self) -> None:
        """End it; does nothing if it has ended."""
        with self._process:  # waits, and closes the pipe
            if not self.is_done():
                os.killpg(self._process.pid, signal.SIGTERM)


def find_uv(paths: Paths) -> Path:
    """A uv that reads our lock: on PATH, or the one in the cache, which is installed if missing."""
    found = shutil.which("uv")
    if found and is_new_enough(_output(found, "--version")):
        return Path(found)
    target = paths.cache / f"uv-{UV_VERSION}"
    if not (target / "bin" / "uv").exists():
        with partials.made(target) as draft:
            _run([str(interpreter()), "-m", "venv", str(draft)], "making a virtual environment", draft)
            pip = [str(draft / "bin" / "python"), "-m", "pip", "install", "--quiet"]
            _run([*pip, f"uv=={UV_VERSION}"], f"installing uv {UV_VERSION}", draft)
    return target / "bin" / "uv"


def is_new_enough(version: str) -> bool:
    """Whether the output of `uv --version` is that of a uv that can read uv.lock."""
    match = re.match(r"uv (\d+)\.(\d+)", version)
    return match is not None and (int(match[1]), int(match[2])) >= (0, 13)


def python_path() -> str:
    """The PYTHONPATH with which an environment finds our own packages in the checkout."""
    return ":".join(str(ROOT / source) for source in SOURCES)


def _build(target: Path, environment: Environment, uv: Path, lock: int) -> None:
    # At its final place, since an environment's scripts name it; without the mark it counts as not there. Who holds the
    # lock is the only one at work on any of this name.
    for half in target.parent.glob(f"{environment.name}-*"):
        if not (half / DONE).exists():
            shutil.rmtree(half, ignore_errors=True)
    command = [str(uv), "sync", "--quiet", f"--project={ROOT}", f"--python={interpreter()}"]
    # Containers see the environment read-only: what is not compiled now would be compiled at every start.
    command += ["--frozen", "--no-install-workspace", "--compile-bytecode", *environment.selection]
    what = f"installing the {environment.name}'s packages"
    _run(command, what, target, (lock,), UV_PROJECT_ENVIRONMENT=str(target))
    (target / DONE).touch()


def _run(command: Sequence[str], what: str, into: Path, kept_open: Sequence[int] = (), **variables: str) -> None:
    done = subprocess.run(
        command,
        pass_fds=kept_open,  # a lock is held until the last of its holders ends: uv may outlive us
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        why = reasons.of(done.stdout, into, "the package index")
        raise ClusterError(f"{what} failed: {why}\n{done.stdout[-3000:]}")


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """The lock's file descriptor."""
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def main(arguments: Sequence[str]) -> None:
    """The two commands that the module's docstring shows."""
    match arguments:
        case ["path", name] if name in ENVIRONMENTS:
            print(ensure(Paths.from_environment(), ENVIRONMENTS[name], Reporter()))
        case ["run", name, *rest] if name in ENVIRONMENTS:
            python = ensure(Paths.from_environment(), ENVIRONMENTS[name], Reporter()) / "bin" / "python"
            variables = {
                "PYTHONPATH": python_path(),
                "PATH": f"{python.parent}:{os.environ.get('PATH', '')}",
                "VIRTUAL_ENV": str(python.parents[1]),
            }
            sys.stdout.flush()
            os.execve(python, [str(python), *rest], {**os.environ, **variables})
        case _:
            names = "|".join(ENVIRONMENTS)
            sys.exit(f"usage: python -m tunesmith_cluster.environments path {names} | run {names} ARGUMENT...")


if __name__ == "__main__":
    with messages.shown():
        main(sys.argv[1:])
