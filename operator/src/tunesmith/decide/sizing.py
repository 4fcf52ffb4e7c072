"""How large an engine must be for its adapters: ranks, adapters in a batch, adapters in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tunesmith.api.modeldeployment import Engine
from tunesmith.serving.contract import State

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# What is kept free for adapters that are not there yet: larger buffers cost memory, a restart costs minutes.
LEAST_RANK, LEAST_LORAS, MOST_LORAS, LEAST_CPU_LORAS = 64, 8, 32, 32


@dataclass(frozen=True)
class Sizes:
    """The engine's arguments that depend on its adapters."""

    max_lora_rank: int
    max_loras: int
    max_cpu_loras: int
    lacking: str | None = None
    """What the adapters would need and the engine has not, for people."""
    reason: str = "Sized"


def sizes(engine: Engine, ranks: Mapping[str, int], count: int, old: State | None) -> Sizes:
    """The sizes for `count` adapters with these ranks, as far as known. What was derived once stays: a change
    restarts every pod, and is made only where the spec allows it.
    """
    needed_rank = next((r for r in RANKS if r >= max(ranks.values(), default=0)), RANKS[-1])
    loras = _power(count, LEAST_LORAS, MOST_LORAS)
    cpu_loras = max(_power(2 * count, LEAST_CPU_LORAS, 4096), engine.max_loras or loras)
    first = Sizes(max(needed_rank, LEAST_RANK), loras, cpu_loras)
    kept = first
    if old is not None and engine.resize == "Never":
        kept = Sizes(old.max_lora_rank, old.max_loras or loras, old.max_cpu_loras or cpu_loras)
    elif old is not None:
        # Never smaller: what an adapter needed once, the next one may need, too.
        in_memory = old.max_cpu_loras if count <= old.max_cpu_loras else cpu_loras
        kept = Sizes(max(needed_rank, old.max_lora_rank), max(loras, old.max_loras), in_memory)
    rank, batch = engine.max_lora_rank or kept.max_lora_rank, engine.max_loras or kept.max_loras
    result = Sizes(rank, batch, max(batch, engine.max_cpu_loras or kept.max_cpu_loras))
    large = {name: value for name, value in ranks.items() if value > rank}
    allowed = "" if engine.max_lora_rank else ", or spec.engine.resize to Allowed"
    if large:
        name, value = max(large.items(), key=lambda one: one[1])
        if value > RANKS[-1]:
            lacking = (
                f"adapter {name} has rank {value}, but vLLM serves ranks up to {RANKS[-1]} only: merge it (MergeJob)"
            )
        else:
            lacking = (
                f"adapter {name} has rank {value}, but the pods were started for ranks up to {rank}: "
                f"set spec.engine.maxLoraRank to {needed_rank}{allowed} (the pods restart, one after the other)"
            )
        return Sizes(rank, batch, result.max_cpu_loras, lacking, "RestartNeeded")
    if count > result.max_cpu_loras:
        lacking = (
            f"{count} adapters are wanted, but the pods keep {result.max_cpu_loras} in memory: the others are read "
            f"from disk at each use. Set spec.engine.maxCpuLoras to {cpu_loras} (the pods restart, one after the other)"
        )
        return Sizes(rank, batch, result.max_cpu_loras, lacking, "TooManyAdapters")
    return result


def _power(count: int, least: int, most: int) -> int:
    """The smallest power of two that is enough, within bounds."""
    return min(most, max(least, 1 << max(0, count - 1).bit_length()))
