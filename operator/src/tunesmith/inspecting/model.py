"""What a model is, by config.json and the headers of its safetensors files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tunesmith.inspecting.files import Files
from tunesmith.inspecting.refusal import Refusal
from tunesmith.training.architecture import facts
from tunesmith.training.capabilities import FULL_PRECISION, base_of, packed_as, quantizer
from tunesmith.training.report import Inspection

INDEX = "model.safetensors.index.json"
MOST_JSON = 64 * 1024 * 1024
FIRST_PART = 128 * 1024  # holds most headers whole
MOST_HEADER = 100_000_000  # the format's own limit
MOST_REASON = 500
AT_A_TIME = 8

Header = list[tuple[str, tuple[int, ...]]]


def inspect(uri: str, files: Files) -> Inspection:
    """The facts of a model. Raises Refusal where it cannot be trained, and what `files` raises."""
    config = _config(uri, files)
    weights = _weights(uri, files)
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        headers = list(pool.map(lambda name: _header(uri, files, name), weights))
    base = base_of(config) or FULL_PRECISION
    # Packed weights have other shapes than the layers that they stand for.
    whole = [tensor for header in headers for tensor in header] if base == FULL_PRECISION else None
    found, reason = facts(config, whole)
    if found and base != FULL_PRECISION:
        found = found.model_copy(update={"quantized": True, "packed": packed_as(config)})
    return Inspection(facts=found, reason=reason[:MOST_REASON], base=base)


def _config(uri: str, files: Files) -> dict[str, Any]:
    names = sorted(files.names)
    if "config.json" not in names:
        hint = (
            "It is an adapter: merge it with its base by a MergeJob first"
            if "adapter_config.json" in names
            else "The address must be a model's folder"
        )
        raise Refusal("ModelError", f"model {uri}: no config.json in {files.where}; found {names[:20]}. {hint}")
    config = _json(uri, files, "config.json")
    if base_of(config) is None:
        raise Refusal(
            "ModelError",
            f"model {uri}: it is quantised ({quantizer(config).get('quant_method')}) in a way that is not known; use "
            "its full-precision release (tuner QLoRA quantises it by itself)",
        )
    return config


def _json(uri: str, files: Files, name: str) -> dict[str, Any]:
    try:
        value = json.loads(files.read(name, 0, MOST_JSON))
    except ValueError as error:
        raise Refusal("ModelError", f"model {uri}: {name} is no JSON: {error}. Copy the model again") from None
    if not isinstance(value, dict):
        raise Refusal("ModelError", f"model {uri}: {name} holds no object. Copy the model again")
    return value


def _weights(uri: str, files: Files) -> list[str]:
    """Names of the files that hold the weights."""
    found = sorted(name for name in files.names if name.endswith(".safetensors") and "/" not in name)
    if not found:
        raise Refusal(
            "ModelError",
            f"model {uri}: no *.safetensors in {files.where}; found {sorted(files.names)[:20]}. Convert pickled "
            "weights",
        )
    if INDEX in files.names:
        named = sorted(set(map(str, (_json(uri, files, INDEX).get("weight_map") or {}).values())))
        if missing := [name for name in named if name not in found]:
            raise Refusal(
                "ModelError",
                f"model {uri}: {INDEX} names {missing[0]}, which is not there ({len(missing)} of {len(named)} files "
                "are missing). Copy the model again",
            )
        return named or found
    return ["model.safetensors"] if "model.safetensors" in found else found


def _header(uri: str, files: Files, name: str) -> Header:
    data = files.read(name, 0, FIRST_PART)
    size = int.from_bytes(data[:8], "little")
    if data.startswith(b"version https://git-lfs"):
        raise Refusal(
            "ModelError", f"model {uri}: {name} is a pointer of Git LFS: fetch the file itself (git lfs pull)"
        )
    try:
        if len(data) < 8 or size > MOST_HEADER:
            raise ValueError("it does not begin with its length")
        if 8 + size > len(data):
            data += files.read(name, len(data), 8 + size - len(data))
        if len(data) < 8 + size:
            raise ValueError(f"it should have {size} bytes, of which {len(data) - 8} are there")
        return list(_tensors(data[8 : 8 + size]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refusal(
            "ModelError", f"model {uri}: {name} has no safetensors header ({error}). Copy the model again"
        ) from None


def _tensors(header: bytes) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, entry in json.loads(header).items():
        if name != "__metadata__":
            yield name, tuple(int(side) for side in entry["shape"])
