"""Long-running processes: starting them detached, knowing them again later, ending them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tunesmith_cluster import disk, files
from tunesmith_cluster.errors import ClusterError

_PROC = Path("/proc")
# Becomes the service once it is told to. If whoever starts it is killed before, its input ends, and so does it.
_WHEN_NOTED = ["sh", "-c", 'read -r _ && exec "$@" </dev/null', "sh"]


@dataclass(frozen=True, slots=True)
class Identity:
    """A process for certain: a process id alone may meanwhile belong to somebody else's process."""

    pid: int
    start_time: int
    """In clock ticks since boot, as the kernel tells it."""
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The identity of a living process; None if there is none, or only its zombie."""
        try:
            state, start_time = parse_stat((_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace"))
        except OSError:
            return None
        return None if state in "ZX" else cls(pid, start_time, _boot_id())

    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        return Identity.of(self.pid) == self

    def send(self, signal_number: int) -> None:
        """Send a signal, but never to another process that got the same id."""
        try:
            # The pidfd pins the process before it is compared, so that the id cannot be reused in between.
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            return
        try:
            if self.is_alive():
                signal.pidfd_send_signal(descriptor, signal_number)
        except ProcessLookupError:
            pass
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Service:
    """A process the cluster consists of."""

    name: str
    command: Sequence[str]
    is_ready: Callable[[], bool]
    """Asked again and again after the start; may raise OSError for "not yet"."""
    listens: Sequence[tuple[str, int]] = ()
    """The TCP addresses and ports it binds, to find out who else holds them."""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Supervisor:
    """Starts and stops services; what it knows is in files, so that any later process can go on."""

    pids: Path
    logs: Path

    def identity(self, name: str) -> Identity | None:
        """The identity of the service's process as it was started, alive or not."""
        try:
            return Identity(**json.loads((self.pids / f"{name}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def is_alive(self, name: str) -> bool:
        """Whether the service's process runs."""
        identity = self.identity(name)
        return identity is not None and identity.is_alive()

    def started(self) -> list[str]:
        """The names of all services that were started here and not stopped."""
        return sorted(path.stem for path in self.pids.glob("*.json"))

    def start(self, service: Service) -> None:
        """Start a service in a session of its own, so that it outlives us and our terminal."""
        self.pids.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(parents=True, exist_ok=True)
        with open(self.log(service.name), "ab", buffering=0) as log:  # the line comes before the service's own
            log.write(f"--- {time.strftime('%FT%TZ', time.gmtime())} start\n".encode())
            process = subprocess.Popen(
                [*_WHEN_NOTED, *service.command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.pids.parent,
                # Not the caller's environment: a proxy setting would send the components' own traffic astray.
                env={
                    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                    **service.environment,
                },
                start_new_session=True,
                umask=0o022,
            )
        process.returncode = 0  # nobody waits for it, and that is no mistake to warn of
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as told:
            identity = Identity.of(process.pid)
            if identity is None:
                raise ClusterError(f"{service.name} ended at once; {self.tail(service.name)}")
            files.write(self.pids / f"{service.name}.json", json.dumps(asdict(identity)).encode())
            told.write(b"\n")

    def wait_ready(self, service: Service, timeout: float = 60) -> None:
        """Wait until the service is ready; raise at once if its process dies."""
        deadline = time.monotonic() + timeout
        while True:
            self.check_alive(service.name)
            try:
                if service.is_ready():
                    return
            except OSError:
                pass
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"{service.name} runs but is not ready after {timeout:.0f} s; {self.tail(service.name)}"
                )
            time.sleep(0.1)

    def check_alive(self, name: str) -> None:
        """Raise, with the end of its log, if the service's process does not run."""
        if not self.is_alive(name):
            tail = self.tail(name)
            why = f": {disk.full([self.logs])}" if disk.is_blamed(tail) else ""
            raise ClusterError(f"{name} died{why}; {tail}")

    def stop(self, name: str, grace: float = 10) -> None:
        """End a service's process, politely first; does nothing if it does not run."""
        identity = self.identity(name)
        if identity is not None:
            end(identity, grace)
        (self.pids / f"{name}.json").unlink(missing_ok=True)

    def kill(self, name: str) -> None:
        """End a service's process as a loss of power would; does nothing if it does not run."""
        identity = self.identity(name)
        if identity is not None:
            identity.send(signal.SIGKILL)
            _wait_gone(identity, 10)
        (self.pids / f"{name}.json").unlink(missing_ok=True)

    def log(self, name: str) -> Path:
        """The file that takes the service's output."""
        return self.logs / f"{name}.log"

    def tail(self, name: str, lines: int = 15) -> str:
        """A sentence with the last lines of a service's log."""
        path = self.log(name)
        try:
            last = path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        except OSError:
            last = []
        return f"the end of {path}:\n" + "\n".join(f"  {line}" for line in last)


def end(identity: Identity, grace: float) -> None:
    """SIGTERM, then SIGKILL after `grace` seconds; returns once the process is gone."""
    identity.send(signal.SIGTERM)
    if not _wait_gone(identity, grace):
        identity.send(signal.SIGKILL)
        _wait_gone(identity, 10)


def _wait_gone(identity: Identity, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while identity.is_alive():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    with suppress(ChildProcessError):
        os.waitpid(identity.pid, os.WNOHANG)  # no zombie is left if it was this very process that started it
    return True


def running() -> dict[int, tuple[int, list[str]]]:
    """Every process of the machine: its parent's id and its command line."""
    table: dict[int, tuple[int, list[str]]] = {}
    for folder in _PROC.glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text(encoding="utf-8", errors="replace")
            command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
        except OSError:
            continue  # ended meanwhile
        table[int(folder.name)] = (int(stat.rpartition(")")[2].split()[1]), command)
    return table


def descendants(roots: set[int], table: Mapping[int, tuple[int, list[str]]]) -> set[int]:
    """The given processes and all their children, grandchildren, and so on."""
    found = set(roots)
    while True:
        more = {pid for pid, (parent, _) in table.items() if parent in found} - found
        if not more:
            return found
        found |= more


def resident_bytes(pid: int) -> int:
    """How much memory a process occupies; 0 if it is gone."""
    try:
        return int((_PROC / str(pid) / "statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def parse_stat(text: str) -> tuple[str, int]:
    """The state letter and the start time in the text of /proc/PID/stat."""
    # The second field is the program's name in parentheses, and it may itself hold spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _boot_id() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
