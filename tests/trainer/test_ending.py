"""Endings: every outcome is one message of at most 4096 bytes, and what failed first stays."""

from __future__ import annotations

import io
import json
import multiprocessing
import sys
import time
from collections import deque
from pathlib import Path

import pytest
from tunesmith.training.report import TERMINATION_BYTES, Ending
from tunesmith_trainer import ending
from tunesmith_trainer.__main__ import main
from tunesmith_trainer.errors import (
    CheckFailed,
    ConfigError,
    DataError,
    Interrupted,
    LossDiverged,
    ModelError,
    Superseded,
    TrainerError,
)

pytestmark = pytest.mark.trainer


def fail(error: BaseException) -> int:
    """Run a command that raises."""

    def command() -> Ending:
        raise error

    return ending.run(command)


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


class SafetensorError(Exception):
    """As safetensors names it."""


class DistStoreError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    ("error", "reason", "code"),
    [
        (ConfigError("x"), "ConfigError", 64),
        (DataError("x"), "DataError", 65),
        (ModelError("x"), "ModelError", 66),
        (CheckFailed("x"), "CheckFailed", 67),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "OutOfMemory", 68),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "OutOfMemory", 68),
        (MemoryError(), "OutOfMemory", 68),
        (Interrupted("x"), "Interrupted", 143),
        (ZeroDivisionError("x"), "Internal", 70),
        (OSError(28, "No space left on device", "store/x"), "DiskFull", 72),
        (OSError(122, "Disk quota exceeded"), "DiskFull", 72),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "DiskFull", 72),
        (RuntimeError("[enforce fail at inline_container.cc:626] . unexpected pos 64 vs 0"), "DiskFull", 72),
        (LossDiverged("x"), "LossDiverged", 71),
        (Superseded("x"), "Superseded", 74),
        (
            RuntimeError("[unbound_buffer.cc:78] Timed out waiting 3000ms for recv"),
            "CollectiveTimeout",
            73,
        ),
        (
            RuntimeError("[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=9)"),
            "CollectiveTimeout",
            73,
        ),
        (
            DistStoreError("Timed out after 601 seconds waiting for clients. 1/2 clients joined."),
            "CollectiveTimeout",
            73,
        ),
        (RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"), "PeerLost", 69),
    ],
)
def test_each_failure_has_its_class_and_exit_code(message: Path, error: BaseException, reason: str, code: int) -> None:
    assert fail(error) == code
    assert Ending.model_validate_json(message.read_bytes()).reason == reason


def test_success_exits_0_and_carries_what_the_command_returns(message: Path) -> None:
    assert ending.run(lambda: Ending(reason="Completed", logit_error=0.5)) == 0
    assert json.loads(message.read_text())["logitError"] == 0.5


def test_what_failed_first_stays(message: Path) -> None:
    fail(DataError("first"))
    fail(ConfigError("second"))
    assert Ending.model_validate_json(message.read_bytes()).message == "first"


def test_other_processes_of_a_container_are_silent_about_success(
    message: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "3")
    assert ending.run(lambda: Ending(reason="Completed")) == 0
    assert message.read_bytes() == b""
    fail(DataError("x"))
    assert Ending.model_validate_json(message.read_bytes()).rank == 3


def test_an_ending_fits_a_termination_message_whatever_was_logged(message: Path) -> None:
    def command() -> Ending:
        for number in range(100):
            print(f"line {number} " + "漢字" * 400)
        raise DataError("字" * 10000)

    ending.run(command)
    data = message.read_bytes()
    assert len(data) <= TERMINATION_BYTES
    assert Ending.model_validate_json(data).reason == "DataError"


def test_the_last_lines_logged_are_reported(message: Path) -> None:
    def command() -> Ending:
        for number in range(30):
            print(f"line {number}")
        sys.stderr.write("bar 1%\rbar 100%\n")
        raise DataError("bad")

    ending.run(command)
    log = Ending.model_validate_json(message.read_bytes()).log
    assert len(log) == 20
    assert log[-3:] == ["line 29", "bar 100%", "DataError: bad"]


def test_the_tail_passes_everything_on_and_keeps_short_lines() -> None:
    stream, lines = io.StringIO(), deque[str](maxlen=2)
    tail = ending.Tail(stream, lines)
    tail.write("a\nb")
    tail.write("c\n" + "x" * 1000 + "\n")
    assert stream.getvalue() == "a\nbc\n" + "x" * 1000 + "\n"
    assert list(lines) == ["bc", "x" * ending.LINE_LENGTH]


def test_every_class_of_the_contract_has_an_exception() -> None:
    classes = {cls.reason: cls.exit_code for cls in TrainerError.__subclasses__()}
    assert classes == {
        "ConfigError": 64, "DataError": 65, "ModelError": 66, "CheckFailed": 67, "OutOfMemory": 68,
        "PeerLost": 69, "Internal": 70, "LossDiverged": 71, "DiskFull": 72, "CollectiveTimeout": 73, "Superseded": 74,
        "Interrupted": 143,
    }  # fmt: skip


def test_a_missing_plan_and_a_wrong_one_are_configuration_errors(message: Path, tmp_path: Path) -> None:
    assert main(["train", "--plan", str(tmp_path / "none.json")]) == 64
    message.write_bytes(b"")
    (tmp_path / "plan.json").write_text('{"kind": "FineTuneJob", "nodes": "many"}')
    assert main(["train", "--plan", str(tmp_path / "plan.json")]) == 64
    assert "job: Field required" in Ending.model_validate_json(message.read_bytes()).message


def test_a_loaders_process_does_not_hold_up_the_end() -> None:
    """It is forked with all that is open, and may live longer."""
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,), daemon=True)
    with ending.prompt_sigterm():
        process.start()
    assert process.is_alive()
    process.kill()
    process.join()
