"""Readiness questions, as functions that can be asked again and again, and a wait for the answer."""

from __future__ import annotations

import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tunesmith_cluster.certificates import KeyPair
from tunesmith_cluster.errors import ClusterError


def answers(url: str, ca: Path | None = None, client: KeyPair | None = None) -> Callable[[], bool]:
    """Does an HTTP GET succeed?"""

    def ask() -> bool:
        context = ssl.create_default_context(cafile=ca)
        if ca is None:  # the component made its certificate up when it started
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if client is not None:
            context.load_cert_chain(client.certificate, client.key)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(url, timeout=2) as answer:
            return bool(answer.status == 200)

    return ask


def await_start(
    process: subprocess.Popen[bytes], ready: Callable[[], bool], name: str, log: Path, seconds: float, hint: str = ""
) -> None:
    """Until a process that was just started is ready. Raises ClusterError, with the end of its log and the hint."""
    end = time.monotonic() + seconds
    while True:
        with suppress(OSError):
            if ready():
                return
        if process.poll() is not None or time.monotonic() > end:
            raise ClusterError(f"{name} does not start; its log ends with:\n{log.read_text()[-2000:]}{hint}")
        time.sleep(0.1)


def accepts(path: Path) -> Callable[[], bool]:
    """Does somebody listen on this Unix socket? Raises OSError where not, as the others do."""

    def ask() -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        return True

    return ask


def is_listened_to(path: Path) -> bool:
    """Whether somebody listens on this Unix socket."""
    try:
        return accepts(path)()
    except OSError:
        return False
