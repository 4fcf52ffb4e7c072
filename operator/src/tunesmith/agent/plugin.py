"""A vLLM plugin: two versions of an adapter are two adapters, each answers as it learned to, and an engine that cannot
start says why.

vLLM (0.32, 0.33) compares LoRARequests by their names. Where answers of an old version run beside those of the new one,
the set of a batch's adapters then holds one of the two, the other may be evicted in the middle of an answer, and the
engine dies of a KeyError in set_adapter_mapping. The ids differ, so they are compared, too.

It takes the ends of answers and the chat template from the base model only. An adapter that learned other ones would
run on, or be asked in a form that it never saw: its own generation_config.json and chat_template.jinja count.

Like the guard, this file runs in any vLLM image, and in all of its processes:
https://docs.vllm.ai/en/stable/design/plugin_system
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import re
from functools import cache, lru_cache, wraps
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
def file_of(adapter: str, name: str) -> str:
    """A file of an adapter, which the agent has checked; empty where there is none. What is loaded does not change: its
    folder is named by its digest.
    """
    try:
        return (Path(adapter) / name).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


@lru_cache(maxsize=4096)
def generation(adapter: str) -> dict[str, Any]:
    """An adapter's generation_config.json."""
    found: dict[str, Any] = json.loads(file_of(adapter, "generation_config.json") or "{}")
    return found


def ending(process_inputs: Any) -> Any:
    """InputProcessor.process_inputs with the ends of the request's adapter beside those of the base."""

    @wraps(process_inputs)
    def wrapped(self: Any, *args: Any, **more: Any) -> Any:
        request = process_inputs(self, *args, **more)
        if request.lora_request and (params := request.sampling_params):
            ends = generation(request.lora_request.lora_path).get("eos_token_id")
            params.update_from_generation_config({"eos_token_id": ends}, params.eos_token_id)
        return request

    return wrapped


served: list[Any] = []
"""The OpenAIServingModels of this process: it knows the adapters by their names."""


def remembering(init: Any) -> Any:
    """OpenAIServingModels.__init__."""

    @wraps(init)
    def wrapped(self: Any, *args: Any, **more: Any) -> None:
        init(self, *args, **more)
        served[:] = [self]

    return wrapped


def templated(build_chat_params: Any) -> Any:
    """A request's build_chat_params with the template of its adapter, but where the engine was started with one."""

    @wraps(build_chat_params)
    def wrapped(self: Any, default_template: str | None, *args: Any, **more: Any) -> Any:
        adapter = served[0].lora_requests.get(self.model) if served else None
        template = default_template or (adapter and file_of(adapter.lora_path, "chat_template.jinja")) or None
        return build_chat_params(self, template, *args, **more)

    return wrapped


WRAPPED = {
    "vllm.v1.engine.input_processor:InputProcessor.process_inputs": ending,
    "vllm.entrypoints.openai.models.serving:OpenAIServingModels.__init__": remembering,
    "vllm.entrypoints.openai.chat_completion.protocol:ChatCompletionRequest.build_chat_params": templated,
    "vllm.entrypoints.openai.responses.protocol:ResponsesRequest.build_chat_params": templated,
    "vllm.entrypoints.serve.tokenize.protocol:TokenizeChatRequest.build_chat_params": templated,
}


def wrap(address: str, wrapper: Any) -> None:
    """Put `wrapper` around a method. Raises ImportError and AttributeError."""
    module, _, name = address.partition(":")
    owner, _, method = name.partition(".")
    kind = getattr(importlib.import_module(module), owner)
    setattr(kind, method, wrapper(getattr(kind, method)))


@cache
def register() -> None:
    """What vLLM calls, in each of its processes."""
    from vllm.lora.request import LoRARequest  # type: ignore[import-not-found, unused-ignore]

    def key(request: Any) -> tuple[str, int]:
        return request.lora_name, request.lora_int_id

    LoRARequest.__eq__ = lambda self, other: isinstance(other, LoRARequest) and key(self) == key(other)
    LoRARequest.__hash__ = lambda self: hash(key(self))
    log = logging.getLogger("vllm")
    for address, wrapper in WRAPPED.items():
        try:
            wrap(address, wrapper)
        except (ImportError, AttributeError):  # of another version: it serves as it would without us
            log.warning("tunesmith: this vLLM has no %s: what adapters say of templates and ends is not heard", address)
    log.addHandler(LastWords(TERMINATION_LOG))
