"""A vLLM plugin: two versions of an adapter are two adapters, answers end where their adapter learned to end them, and
an engine that cannot start says why.

vLLM (0.32, 0.33) compares LoRARequests by their names. Where answers of an old version run beside those of the new one,
the set of a batch's adapters then holds one of the two, the other may be evicted in the middle of an answer, and the
engine dies of a KeyError in set_adapter_mapping. The ids differ, so they are compared, too.

It knows the ends of the base model's answers only. An adapter of a base model that was taught a chat template ends them
with another token, and would run on; its own generation_config.json counts, too.

Like the guard, this file runs in any vLLM image, and in all of its processes:
https://docs.vllm.ai/en/stable/design/plugin_system
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from functools import lru_cache, wraps
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


@lru_cache(maxsize=4096)
def generation(adapter: str) -> dict[str, Any]:
    """The generation_config.json of an adapter, which the agent has checked. What is loaded does not change: its folder
    is named by its digest.
    """
    try:
        found: dict[str, Any] = json.loads((Path(adapter) / "generation_config.json").read_bytes())
    except FileNotFoundError:
        return {}
    return found


def ending(process_inputs: Any) -> Any:
    """InputProcessor.process_inputs with the ends of the request's adapter beside those of the base."""

    @wraps(process_inputs)
    def wrapped(self: Any, *args: Any, **more: Any) -> Any:
        request = process_inputs(self, *args, **more)
        if request.lora_request and (params := request.sampling_params):
            ends = {"eos_token_id": generation(request.lora_request.lora_path).get("eos_token_id")}
            params.update_from_generation_config(ends, params.eos_token_id)
        return request

    return wrapped


def register() -> None:
    """What vLLM calls. More than once does no harm."""
    from vllm.lora.request import LoRARequest  # type: ignore[import-not-found, unused-ignore]

    def key(request: Any) -> tuple[str, int]:
        return request.lora_name, request.lora_int_id

    LoRARequest.__eq__ = lambda self, other: isinstance(other, LoRARequest) and key(self) == key(other)
    LoRARequest.__hash__ = lambda self: hash(key(self))
    log = logging.getLogger("vllm")
    try:
        from vllm.v1.engine.input_processor import InputProcessor  # type: ignore[import-not-found, unused-ignore]
    except ImportError:  # of another version: engines serve, as before
        log.warning("tunesmith: this vLLM ends the answers of adapters only where the base model's end")
    else:
        if not hasattr(InputProcessor.process_inputs, "__wrapped__"):
            InputProcessor.process_inputs = ending(InputProcessor.process_inputs)
    if not any(isinstance(handler, LastWords) for handler in log.handlers):
        log.addHandler(LastWords(TERMINATION_LOG))
