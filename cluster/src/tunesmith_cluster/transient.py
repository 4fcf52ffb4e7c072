"""Processes of this machine that last as long as a context, unlike those that the cluster keeps."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tunesmith_cluster.probes import await_start

_START_SECONDS = 60
_STOP_SECONDS = 30


@contextmanager
def running(
    name: str,
    command: Sequence[str],
    ready: Callable[[], bool],
    log: Path,
    environment: Mapping[str, str] | None = None,
    hint: str = "",
) -> Iterator[None]:
    """The process is ready when the context begins, and gone when it is left. `environment` adds to the caller's."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
    try:
        await_start(process, ready, name, log, _START_SECONDS, hint)
        yield
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(_STOP_SECONDS)


def free_ports(number: int) -> list[int]:
    """Ports of the loopback that nobody listens on."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    try:
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()
