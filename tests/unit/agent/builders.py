"""Adapters and bases made of zeros, without torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from tunesmith.agent import base as bases
from tunesmith.agent import checks, tensors

HIDDEN, INNER, VOCABULARY = 64, 128, 96
GOOD = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none"}
Q = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
LLAMA = {
    "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": VOCABULARY,
}  # fmt: skip


def write(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str = "F32", cut: int = 0, **edits: Any) -> Path:
    """A safetensors file of zeros."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        size = tensors.SIZES.get(dtype, 4)
        for n in shape:
            size *= n
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]} | edits
        end += size
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text + bytes(end)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data[: len(data) - cut])
    return path


def pair(module: str = Q, layer: int = 0, rank: int = 8, fan_in: int = HIDDEN, fan_out: int = HIDDEN) -> dict[str, Any]:
    return {module.format(layer, "A"): (rank, fan_in), module.format(layer, "B"): (fan_out, rank)}


def make(folder: Path, shapes: dict[str, tuple[int, ...]] | None = None, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / checks.CONFIG).write_text(json.dumps({**GOOD, **config}))
    write(folder / checks.WEIGHTS, pair() if shapes is None else shapes)
    return folder


def make_base(folder: Path, config: dict[str, Any] = LLAMA, prefix: str = "model.", **more: Any) -> bases.Base:
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}embed_tokens.weight": (VOCABULARY, HIDDEN)}
    for layer in range(2):
        name = f"{prefix}layers.{layer}"
        shapes[f"{name}.self_attn.q_proj.weight"] = (HIDDEN, HIDDEN)
        shapes[f"{name}.self_attn.k_proj.weight"] = (HIDDEN // 2, HIDDEN)
        shapes[f"{name}.mlp.down_proj.weight"] = (HIDDEN, INNER)
        shapes[f"{name}.input_layernorm.weight"] = (HIDDEN,)
    write(folder / "model.safetensors", shapes, **more)
    (folder / "config.json").write_text(json.dumps(config))
    return bases.read(folder)
