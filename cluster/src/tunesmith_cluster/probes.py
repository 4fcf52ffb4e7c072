"""Readiness questions, as functions that can be asked again and again."""

from __future__ import annotations

import socket
import ssl
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tunesmith_cluster.certificates import KeyPair


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
