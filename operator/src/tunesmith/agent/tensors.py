"""The header of a safetensors file: names, types and shapes, without the weights and without torch."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

MAX_HEADER = 100 * 1024 * 1024  # the format's own limit
SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2,
    "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


class HeaderError(ValueError):
    """The file is not whole, or not in the safetensors format."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file."""

    dtype: str
    shape: tuple[int, ...]


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file whose size agrees with its header. Raises HeaderError and OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise HeaderError(f"{path.name}: {size} bytes are no safetensors file: save the tensors again")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(MAX_HEADER, size - 8):
            raise HeaderError(
                f"{path.name}: the header should have {length} bytes, but the file has {size}: "
                "it is truncated or no safetensors file; copy or save it again"
            )
        header = file.read(length)
    try:
        return _parse(path.name, header, size - 8 - length)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, HeaderError):
            raise
        raise HeaderError(f"{path.name}: the safetensors header is damaged ({error}); save the file again") from None


def _parse(name: str, header: bytes, data: int) -> dict[str, Tensor]:
    entries = json.loads(header)
    entries.pop("__metadata__", None)
    tensors, end = {}, 0
    for key, entry in entries.items():
        tensor = Tensor(str(entry["dtype"]), tuple(int(n) for n in entry["shape"]))
        first, last = entry["data_offsets"]
        wanted = SIZES.get(tensor.dtype)
        if first < 0 or last < first or (wanted and last - first != wanted * math.prod(tensor.shape)):
            raise HeaderError(f"{name}: tensor {key}: {last - first} bytes for {tensor.dtype} {list(tensor.shape)}")
        end = max(end, last)
        tensors[key] = tensor
    if end != data:
        raise HeaderError(
            f"{name}: truncated or damaged: the header announces {end} bytes of weights, {data} are there; "
            "copy or save the file again"
        )
    return tensors
