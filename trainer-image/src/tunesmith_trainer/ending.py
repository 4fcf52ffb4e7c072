"""How a process ends: every outcome becomes an Ending in the container's termination message, and an exit code."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import re
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import TextIO

from tunesmith.training.report import TERMINATION_LOG, Ending

from tunesmith_trainer.errors import InternalError, Interrupted, OutOfMemory, PeerLost, TrainerError

LOG_LINES = 20
LINE_LENGTH = 512
MESSAGE_LENGTH = 3000


class Tail(io.TextIOBase):
    """A stream that passes text on and keeps its last lines. A carriage return begins the line anew."""

    def __init__(self, stream: TextIO, lines: deque[str]) -> None:
        self.stream, self.lines, self.open = stream, lines, ""

    def write(self, text: str) -> int:
        """Pass `text` on; remember the lines that it completes."""
        *done, last = (self.open + text).split("\n")
        for line in done:
            shown = line.rstrip("\r").rsplit("\r", 1)[-1].rstrip()
            if shown:
                self.lines.append(shown[:LINE_LENGTH])
        self.open = last.rsplit("\r", 1)[-1][:LINE_LENGTH]
        return self.stream.write(text)

    def flush(self) -> None:
        """Flush the stream beneath."""
        self.stream.flush()

    def fileno(self) -> int:
        """The descriptor of the stream beneath."""
        return self.stream.fileno()

    def isatty(self) -> bool:
        """Whether the stream beneath is a terminal."""
        return self.stream.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream beneath."""
        return self.stream.encoding


def classify(error: BaseException) -> TrainerError:
    """The failure class of any exception."""
    if isinstance(error, TrainerError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("stopped by SIGINT")
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or re.search(r"OutOfMemory|out of memory|can't allocate memory", text):
        return OutOfMemory(
            f"{text.splitlines()[0]} To use less: halve spec.training.microBatchSize (globalBatchSize stays as it is), "
            "lower maxLength, enable gradientCheckpointing, or take a QLoRA tuner; or ask for more memory"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InternalError(
            f"no space left for {error.filename or 'a file'}: enlarge the store or clear old runs out of it"
        )
    if isinstance(error, RuntimeError) and re.search(
        r"Connection (closed|reset) by peer|gloo|NCCL|DistBackendError|recvValue failed", text
    ):
        return PeerLost(f"lost contact with another process (its own message tells why): {text}")
    return InternalError(text)


def write(ending: Ending) -> None:
    """Put `ending` into the termination message, unless a process of this container was there first: what failed
    first is the cause, the rest are consequences.
    """
    path = os.environ.get("TUNESMITH_TERMINATION_LOG", TERMINATION_LOG)
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        print(f"no termination message: {error}", file=sys.stderr)
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file).st_size == 0:
            os.write(file, ending.encode())
    finally:
        os.close(file)


def on_sigterm(number: int, frame: FrameType | None) -> None:
    """Outside of the training loop, SIGTERM ends the process at once."""
    raise Interrupted("stopped by SIGTERM outside of the training loop: the newest checkpoint, if any, is kept")


def run(command: Callable[[], Ending]) -> int:
    """Run `command`, report how it ended, and return the exit code."""
    lines: deque[str] = deque(maxlen=LOG_LINES)
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Tail(out, lines), Tail(err, lines)
    handler = signal.signal(signal.SIGTERM, on_sigterm)
    try:
        try:
            ending = command()
            code = 0
        except Exception as error:
            failure = classify(error)
            if failure is not error:
                traceback.print_exc()
            message = str(failure)[:MESSAGE_LENGTH]
            print(f"{failure.reason}: {message}", file=sys.stderr)
            rank = int(os.environ.get("RANK", "0"))
            ending = Ending(reason=failure.reason, message=message, rank=rank, log=list(lines))
            code = failure.exit_code
        # In a container of several processes only its first one speaks of success: rank 0 knows the artefact.
        if code or os.environ.get("LOCAL_RANK", "0") == "0":
            write(ending)
        return code
    finally:
        signal.signal(signal.SIGTERM, handler)
        sys.stdout, sys.stderr = out, err
