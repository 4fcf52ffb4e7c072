"""What is left for the kubelet of an engine that ends."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from tunesmith.agent.plugin import MOST, LastWords


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "termination-log").touch()
    return tmp_path / "termination-log"


@pytest.fixture
def log(path: Path) -> Iterator[logging.Logger]:
    logger, handler = logging.getLogger("engine.of.a.test"), LastWords(path)
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)


def fail(log: logging.Logger, words: str, error: Exception) -> None:
    try:
        raise error
    except Exception:
        log.exception(words)


def test_the_first_error_that_ends_a_process_is_kept_and_no_other(log: logging.Logger, path: Path) -> None:
    fail(log, "a request failed", ValueError("no such adapter"))
    log.error("EngineCore failed to start.")
    assert path.read_text() == ""
    fail(log, "WorkerProc failed to start.", AttributeError("no kernel"))
    fail(log, "EngineCore failed to start.", RuntimeError("See the stack trace above"))
    assert path.read_text() == "AttributeError: no kernel"


def test_it_is_as_long_as_a_message_may_be(log: logging.Logger, path: Path) -> None:
    fail(log, "EngineCore encountered a fatal error.", ValueError("x" * 10_000))
    assert len(path.read_text()) == MOST


def test_where_there_is_no_kubelet_nothing_is_written(log: logging.Logger, path: Path) -> None:
    path.unlink()
    fail(log, "EngineCore failed to start.", ValueError("x"))
    assert not path.exists()
