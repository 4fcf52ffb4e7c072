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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from types import FrameType
from typing import TextIO

from tunesmith.training.report import TERMINATION_LOG, Ending

from tunesmith_trainer.errors import (
    CollectiveTimeout,
    DiskFull,
    InternalError,
    Interrupted,
    OutOfMemory,
    PeerLost,
    TrainerError,
)

LOG_LINES = 20
LINE_LENGTH = 512
RAISE_SECONDS = 3.0
"""After SIGTERM the interpreter has this time to raise Interrupted by itself."""
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


# As gloo, NCCL's watchdog and the store of a group word it (torch 2.13).
TIMED_OUT = re.compile(
    r"Timed out waiting|collective operation timeout|Timed out after|timeout in (gloo|store)|DistStoreError.*[Tt]imeout"
    r"|[Ww]ait timeout|Application timeout|Socket Timeout|timed out after \d+ ?ms|monitoredBarrier"
)


# safetensors puts the operating system's words into its own exception; torch's writer drops them, and says only that
# less was written than it gave (torch 2.13 on a full tmpfs).
DISK_FULL = re.compile(
    r"No space left on device|Disk quota exceeded|os error (28|122)\b|inline_container\.cc:\d+\] \. unexpected pos"
    r"|PytorchStreamWriter failed writing"
)


FROM_LOADER = re.compile(r"Caught \w+ in DataLoader worker")


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an exception, or one that it came from, says that a disk is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if DISK_FULL.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def classify(error: BaseException) -> TrainerError:
    """The failure class of any exception."""
    if isinstance(error, TrainerError):
        # One of a loader's process has the whole traceback as its message, which ends with what was said.
        *_, said = str(error).rpartition(f"{type(error).__module__}.{type(error).__name__}: ")
        return type(error)(said.strip()) if FROM_LOADER.match(str(error)) else error
    if isinstance(error, KeyboardInterrupt):
        return Interrupted("stopped by SIGINT")
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or re.search(r"OutOfMemory|out of memory|can't allocate memory", text):
        return OutOfMemory(
            f"{text.splitlines()[0]} To use less: halve spec.training.microBatchSize (globalBatchSize stays as it is), "
            "lower maxLength, enable gradientCheckpointing, or take a QLoRA tuner; or ask for more memory"
        )
    if is_disk_full(error):
        return DiskFull(
            f"no space left for {getattr(error, 'filename', None) or 'a checkpoint or artefact'} "
            f"({text.splitlines()[0]}): enlarge the claim of spec.checkpoint.storage or spec.output.uri, clear old "
            "runs out of it, or lower spec.checkpoint.keep"
        )
    if TIMED_OUT.search(text):
        return CollectiveTimeout(
            "the processes waited for each other in vain: one of them hangs, or its node cannot be reached. See the "
            f"pods that say nothing; it was waited for TUNESMITH_COLLECTIVE_TIMEOUT_SECONDS: {text.splitlines()[0]}"
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


@contextmanager
def prompt_sigterm() -> Iterator[None]:
    """Outside of the training loop SIGTERM ends the process at once, also where the interpreter waits for a library
    (for peers, for a disk) and so cannot raise Interrupted: then a thread ends it.
    """
    handler = signal.signal(signal.SIGTERM, on_sigterm)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    over = Event()

    def watch() -> None:
        while number := os.read(reading, 1)[0]:
            if number != signal.SIGTERM or over.wait(RAISE_SECONDS):
                continue
            if signal.getsignal(signal.SIGTERM) is on_sigterm:
                failure = Interrupted("stopped by SIGTERM while it waited outside of the training loop")
                write(Ending(reason=failure.reason, message=str(failure), rank=own_rank()))
                os._exit(failure.exit_code)

    thread = Thread(target=watch, name="sigterm", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.write(writing, bytes(1))  # to close it would not do: a loader's processes have it open, too
        thread.join()
        os.close(writing)
        os.close(reading)
        signal.signal(signal.SIGTERM, handler)


def own_rank() -> int:
    """This process's number in its group."""
    return int(os.environ.get("RANK", "0"))


def run(command: Callable[[], Ending]) -> int:
    """Run `command`, report how it ended, and return the exit code."""
    lines: deque[str] = deque(maxlen=LOG_LINES)
    out, err = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = Tail(out, lines), Tail(err, lines)
    try:
        with prompt_sigterm():
            try:
                ending = command()
                code = 0
            except Exception as error:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is ending already
                failure = classify(error)
                if failure is not error or error.__cause__:
                    traceback.print_exc()
                message = str(failure)[:MESSAGE_LENGTH]
                print(f"{failure.reason}: {message}", file=sys.stderr)
                ending = Ending(
                    reason=failure.reason,
                    message=message,
                    rank=own_rank(),
                    step=failure.step,
                    checkpoint_step=failure.checkpoint_step,
                    log=list(lines),
                )
                code = failure.exit_code
            # In a container of several processes only its first one speaks of success: rank 0 knows the artefact.
            if code or os.environ.get("LOCAL_RANK", "0") == "0":
                write(ending)
            return code
    finally:
        sys.stdout, sys.stderr = out, err
