"""Whether a model, its adapters and at least one longest request fit into the memory of an engine's pod."""

from __future__ import annotations

import re

from tunesmith.api.modeldeployment import ModelDeploymentSpec, ServingMemory
from tunesmith.api.quantity import amount
from tunesmith.serving.contract import Footprint
from tunesmith.serving.parallel import gpus

GIB = 2**30
# vLLM 0.32.0 on CPU is three processes with 0.9 GiB resident each, beside the model; part of it is shared libraries.
CPU_RUNTIME = int(2.5 * GIB)
UTILIZATION = 0.92  # vLLM's default


def memory(spec: ModelDeploymentSpec, found: Footprint, gpu_memory: int | None) -> ServingMemory:
    """The estimate. What is available is not known where neither a limit nor a node's label tells it."""
    count, limit = gpus(spec) * spec.engine.nodes, (spec.resources.limits or {}).get("memory")
    available: int | None = None
    if count:
        share = float(argument(spec, "gpu-memory-utilization") or UTILIZATION)
        available = int(gpu_memory * share * count) if gpu_memory else None
    elif limit is not None:
        available = (int(amount(limit)) - CPU_RUNTIME) * spec.engine.nodes
    length = spec.engine.max_model_len or found.max_model_len
    fixed = found.weights_bytes + found.adapters_bytes
    total = fixed + found.kv_bytes_per_token * length
    tokens = None
    if available is not None and found.kv_bytes_per_token:
        tokens = max(0, (available - fixed) // found.kv_bytes_per_token)
    return ServingMemory(
        weights_bytes=found.weights_bytes,
        adapters_bytes=found.adapters_bytes,
        kv_bytes_per_token=found.kv_bytes_per_token,
        max_model_len=length,
        total_bytes=total,
        available_bytes=available,
        kv_tokens=tokens,
        summary=_summary(found, length, total, available, tokens),
    )


def argument(spec: ModelDeploymentSpec, name: str) -> str | None:
    """The value of one of the engine's arguments that the user gave."""
    text = "\n".join(spec.engine.args)
    match = re.search(rf"^--{name}[=\n](.+)$", text, re.MULTILINE)
    return match[1] if match else None


def fits(estimate: ServingMemory) -> bool | None:
    """Whether it fits; None: not known."""
    return None if estimate.available_bytes is None else estimate.total_bytes <= estimate.available_bytes


def _summary(found: Footprint, length: int, total: int, available: int | None, tokens: int | None) -> str:
    parts = (
        f"weights {_gib(found.weights_bytes)}, adapters {_gib(found.adapters_bytes)}, KV cache "
        f"{_gib(total - found.weights_bytes - found.adapters_bytes)} for one request of {length} tokens: {_gib(total)}"
    )
    if available is None:
        return f"{parts}; how much there is is not known: set resources.limits"
    if total <= available:
        return f"{parts} of {_gib(available)}; the KV cache can hold {tokens} tokens"
    least = found.weights_bytes + found.adapters_bytes
    if least < available and found.kv_bytes_per_token:
        way = f"set engine.maxModelLen to {(available - least) // found.kv_bytes_per_token} or less, or "
    else:
        way = "use a smaller or quantised model, lower engine.maxLoras or maxLoraRank, or "
    return f"{parts}, but there are only {_gib(available)}: {way}give the pod more memory"


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"
