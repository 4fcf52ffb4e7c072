"""Fixtures of the agent's tests."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from unit.agent.servers import Handler, Server


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as one:
        one.seen = []
        thread = threading.Thread(target=one.serve_forever, args=(0.02,))
        thread.start()
        yield one
        one.shutdown()
        thread.join()
