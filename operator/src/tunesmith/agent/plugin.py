"""A vLLM plugin: two versions of an adapter are two adapters, and an engine that cannot start says why.

vLLM (0.32, 0.33) compares LoRARequests by their names. Where answers of an old version run beside those of the new one,
the set of a batch's adapters then holds one of the two, the other may be evicted in the middle of an answer, and the
engine dies of a KeyError in set_adapter_mapping. The ids differ, so they are compared, too.

Like the guard, this file runs in any vLLM image, and in all of its processes:
https://docs.vllm.ai/en/stable/design/plugin_system
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from pathlib import Path
from typing import Any

TERMINATION_LOG = Path(os.environ.get("TUNESMITH_TERMINATION_LOG", "/dev/termination-log"))
# What vLLM logs, with the error, of a process that cannot begin or go on.
FATAL = re.compile(r"failed to start|fatal error")
MOST = 600
"""Characters, all of which the operator shows."""


class LastWords(logging.Handler):
    """Tells the kubelet why an engine ended. The end of its log does not: that is of the process before the engine's,
    which knows only that the engine is gone. The first one to fail is the cause.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(logging.ERROR)
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Write the error of a record that says that a process ends."""
        error = record.exc_info and record.exc_info[1]
        if not error or not FATAL.search(record.getMessage()):
            return
        with contextlib.suppress(OSError):
            if self.path.exists() and not self.path.stat().st_size:
                self.path.write_text(f"{type(error).__name__}: {error}"[:MOST])


def register() -> None:
    """What vLLM calls. More than once does no harm."""
    from vllm.lora.request import LoRARequest  # type: ignore[import-not-found, unused-ignore]

    def key(request: Any) -> tuple[str, int]:
        return request.lora_name, request.lora_int_id

    LoRARequest.__eq__ = lambda self, other: isinstance(other, LoRARequest) and key(self) == key(other)
    LoRARequest.__hash__ = lambda self: hash(key(self))
    log = logging.getLogger("vllm")
    if not any(isinstance(handler, LastWords) for handler in log.handlers):
        log.addHandler(LastWords(TERMINATION_LOG))
