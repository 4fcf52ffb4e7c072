"""Is this folder an adapter that the engine can serve on this base? Decided before the engine sees it.

vLLM accepts adapters of other bases and answers garbage with them, so shapes are compared here. Each check
raises `CheckError`, which says what was found and what to do.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.agent import tensors
from tunesmith.agent.base import Base

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
GENERATION = "generation_config.json"
# Inits that leave the base's weights as they are. Others (PiSSA, OLoRA, LoftQ, CorDA) change them in training.
PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga", "true", "false"})
UNSUPPORTED = {
    "use_dora": "DoRA is not supported by vLLM: train with use_dora false, or merge the adapter (MergeJob)",
    "lora_bias": "LoRA bias is not supported by vLLM: train with lora_bias false",
    "alora_invocation_tokens": "activated LoRA (aLoRA) is not supported by vLLM",
    "layer_replication": "layer_replication is not supported by vLLM",
    "use_bdlora": "block-diagonal LoRA is not supported by vLLM",
    "use_qalora": "QA-LoRA is not supported by vLLM",
    "modules_to_save": "whole modules in an adapter are not supported: train without modules_to_save, "
    "or merge the adapter (MergeJob)",
}
TENSOR = re.compile(r"^(?:base_model\.model\.)?(.+)\.(lora_A|lora_B)\.weight$")
EMBEDDING = re.compile(r"^(?:base_model\.model\.)?(.+)\.(lora_embedding_A|lora_embedding_B)$")


class CheckError(ValueError):
    """The adapter cannot be served. The message says which field or tensor, what was found, what to do."""

    reason = "CheckFailed"
    rank: int | None = None


class RankError(CheckError):
    """The engine was started for smaller ranks."""

    reason = "RankTooLarge"

    def __init__(self, message: str, rank: int) -> None:
        super().__init__(message)
        self.rank = rank


def check(folder: Path, base: Base, max_rank: int) -> None:
    """All checks, cheapest first. Raises CheckError; OSError where the disk fails."""
    config = read_config(folder)
    check_features(config)
    check_rank(config, max_rank)
    check_ends(folder, base)
    if not (folder / WEIGHTS).is_file():
        other = next((p.name for p in sorted(folder.glob("adapter_model.*"))), None)
        raise CheckError(
            f"{WEIGHTS} is not there"
            + (f", only {other}: only safetensors are loaded, since pickles run code. Convert it" if other else "")
            + ": save the adapter with PEFT's save_pretrained()"
        )
    try:
        found = tensors.read(folder / WEIGHTS)
    except tensors.HeaderError as error:
        raise CheckError(str(error)) from None
    check_tensors(config, found, base)


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter's configuration."""
    if not (folder / CONFIG).is_file():
        raise CheckError(f"{CONFIG} is not there: the address must be the folder of a PEFT adapter")
    return _read(folder / CONFIG)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckError(f"{path.name} is not JSON ({error}): save the adapter again") from None
    if not isinstance(found, dict):
        raise CheckError(f"{path.name} is not a JSON object: save the adapter again")
    return found


def check_features(config: dict[str, Any]) -> None:
    """Only what vLLM implements."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckError(f"{CONFIG}: peft_type is {kind!r}, but only LORA adapters can be served")
    for name, message in UNSUPPORTED.items():
        if config.get(name):
            raise CheckError(f"{CONFIG}: {name} is {config[name]!r}: {message}")
    if config.get("bias") not in (None, "none"):
        raise CheckError(f"{CONFIG}: bias is {config['bias']!r}: vLLM serves no biases; train with bias none")
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in PLAIN_INITS:
        raise CheckError(
            f"{CONFIG}: init_lora_weights is {init!r}, which changes the base's weights: convert the adapter with "
            "PEFT's path_initial_model_for_weight_conversion"
        )


def check_rank(config: dict[str, Any], max_rank: int) -> None:
    """No rank above what the engine was started with."""
    pattern = config.get("rank_pattern") or {}
    if not isinstance(pattern, dict):
        raise CheckError(f"{CONFIG}: rank_pattern is {pattern!r}, not an object")
    ranks = {"r": config.get("r"), **{f"rank_pattern[{k}]": v for k, v in pattern.items()}}
    for name, rank in ranks.items():
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise CheckError(f"{CONFIG}: {name} is {rank!r}, not a positive whole number")
    name, rank = max(((n, int(str(r))) for n, r in ranks.items()), key=lambda one: one[1])
    if rank > max_rank:
        raise RankError(
            f"{CONFIG}: {name} is {rank}, but the engine serves ranks up to {max_rank}: "
            f"set spec.engine.maxLoraRank to at least {rank} (the pods restart)",
            rank,
        )
    alpha = config.get("lora_alpha")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise CheckError(f"{CONFIG}: lora_alpha is {alpha!r}, not a number")
    if not config.get("target_modules") and not config.get("target_parameters"):
        raise CheckError(f"{CONFIG}: target_modules is {config.get('target_modules')!r}: the adapter adapts nothing")


def check_ends(folder: Path, base: Base) -> None:
    """Where the adapter says which tokens end its answers (plugin.py tells vLLM), they are tokens of the base. Others
    would end the engine.
    """
    if not (folder / GENERATION).is_file():
        return
    found = _read(folder / GENERATION).get("eos_token_id") or []
    ends = found if isinstance(found, list) else [found]
    if not all(type(end) is int and 0 <= end < (base.vocabulary or end + 1) for end in ends):
        raise CheckError(
            f"{GENERATION}: eos_token_id is {found!r}, but the base model {base.name} has "
            f"{base.vocabulary or 'no such'} tokens: name some of them, or remove the file"
        )


def check_tensors(config: dict[str, Any], found: dict[str, tensors.Tensor], base: Base) -> None:
    """Every tensor belongs to a module of the base and fits it."""
    pairs: dict[str, dict[str, tuple[int, int]]] = {}
    for name, tensor in found.items():
        match = TENSOR.match(name) or EMBEDDING.match(name)
        if match is None:
            raise CheckError(f"tensor {name} is no part of a LoRA adapter: save it with PEFT's save_pretrained()")
        if tensor.dtype not in ("F16", "BF16", "F32") or len(tensor.shape) != 2:
            raise CheckError(f"tensor {name} is {tensor.dtype} {list(tensor.shape)}: expected two dimensions of floats")
        pairs.setdefault(match[1], {})[match[2]] = (tensor.shape[0], tensor.shape[1])
    if not pairs:
        raise CheckError(f"{WEIGHTS} has no tensors: save the adapter again")
    for module, pair in pairs.items():
        _check_module(config, module, pair, base)


def _check_module(config: dict[str, Any], module: str, pair: dict[str, tuple[int, int]], base: Base) -> None:
    if len(pair) != 2:
        raise CheckError(f"module {module} has {', '.join(pair)} without its other half: save the adapter again")
    (rank, fan_in), (fan_out, rank_b) = (pair[half] for half in sorted(pair))
    if ".experts" in module:  # fused experts: ranks and shapes are multiplied by their number; the engine judges
        return
    if rank != rank_b:
        raise CheckError(f"module {module}: lora_A has rank {rank}, lora_B has {rank_b}: save the adapter again")
    wanted = rank_of(config, module)
    if rank != wanted:
        raise CheckError(f"module {module}: the tensors have rank {rank}, but {CONFIG} says {wanted}")
    shapes = base.shapes(module)
    if not shapes:
        raise CheckError(
            f"module {module} is not in the base model {base.name}: the adapter was trained on another base; "
            "serve it with that one"
        )
    embedding = "lora_embedding_A" in pair
    shape = (fan_in, fan_out) if embedding or config.get("fan_in_fan_out") else (fan_out, fan_in)
    if shape not in shapes and None not in shapes:
        known = " or ".join(f"{o}x{i}" for o, i in sorted(s for s in shapes if s))
        raise CheckError(
            f"module {module}: the adapter is made for {shape[0]}x{shape[1]} weights, but the base model {base.name} "
            f"has {known}: it was trained on another base; serve it with that one"
        )


def rank_of(config: dict[str, Any], module: str) -> int:
    """The rank that PEFT gives a module: the first pattern that matches the end of its name, else r."""
    return next(_patterns(config, module), int(config["r"]))


def _patterns(config: dict[str, Any], module: str) -> Iterator[int]:
    for pattern, rank in (config.get("rank_pattern") or {}).items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                yield int(rank)
        except re.error:
            raise CheckError(f"{CONFIG}: rank_pattern[{pattern}] is no regular expression") from None
