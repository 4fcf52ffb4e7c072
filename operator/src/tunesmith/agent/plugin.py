"""A vLLM plugin: two versions of an adapter are two adapters.

vLLM (0.32, 0.33) compares LoRARequests by their names. Where answers of an old version run beside those of the new one,
the set of a batch's adapters then holds one of the two, the other may be evicted in the middle of an answer, and the
engine dies of a KeyError in set_adapter_mapping. The ids differ, so they are compared, too.

Like the guard, this file runs in any vLLM image, and in all of its processes:
https://docs.vllm.ai/en/stable/design/plugin_system
"""

from __future__ import annotations

from typing import Any


def register() -> None:
    """What vLLM calls. More than once does no harm."""
    from vllm.lora.request import LoRARequest  # type: ignore[import-not-found, unused-ignore]

    def key(request: Any) -> tuple[str, int]:
        return request.lora_name, request.lora_int_id

    LoRARequest.__eq__ = lambda self, other: isinstance(other, LoRARequest) and key(self) == key(other)
    LoRARequest.__hash__ = lambda self: hash(key(self))
