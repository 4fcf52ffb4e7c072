"""The linear layers of a base model, by name, with the shapes that an adapter must fit."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunesmith.agent import tensors

Shape = tuple[int, int]

# The part of a module's name that does not depend on what the model is wrapped in:
# `layers.0.self_attn.q_proj` of `model.language_model.layers.0.self_attn.q_proj`.
TAIL = re.compile(r"(?:^|\.)([A-Za-z_]+\.\d+\..+)$")


class BaseError(ValueError):
    """The base's files cannot be read."""


def tail(module: str) -> str:
    """The end of a module's name that identifies it in any wrapper."""
    match = TAIL.search(module)
    return match[1] if match else module.rsplit(".", 1)[-1]


@dataclass(frozen=True)
class Base:
    """What is known of a base model."""

    name: str
    modules: dict[str, set[Shape | None]] = field(default_factory=dict)
    """Tail of a module's name -> possible (out, in). None: it is there, in a packed form."""
    vocabulary: int = 0
    """Tokens. 0: its config.json does not tell."""

    def shapes(self, module: str) -> set[Shape | None]:
        """The shapes that `module` may have. Empty: the base has no such module."""
        found = self.modules.get(tail(module), set())
        if not found and module.rsplit(".", 1)[-1] == "lm_head":  # tied to the embeddings
            return self.modules.get("embed_tokens", set())
        return found


def read(folder: Path) -> Base:
    """Read a base model's headers and config.json. Raises BaseError."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        files = sorted(folder.glob("*.safetensors"))
        headers = {name: t for path in files for name, t in tensors.read(path).items()}
    except (OSError, ValueError) as error:
        raise BaseError(
            f"the base model's files in {folder} cannot be read ({error}): mount the model into the agent's "
            "container too, in Hugging Face's layout (config.json and *.safetensors)"
        ) from None
    modules: dict[str, set[Shape | None]] = {}
    for name, shape in {**_packed(headers), **_whole(headers)}.items():
        modules.setdefault(tail(name), set()).add(shape)
    text = config.get("text_config") or config
    # Packed weights do not tell their shapes, and other formats not even their names: the config does.
    for name, known in _expected(text).items():
        if modules.get(tail(name), {None}) == {None}:
            modules[tail(name)] = {known}
    if not modules:
        raise BaseError(
            f"the base model in {folder} has no *.safetensors file, and {config.get('model_type')!r} is no "
            "architecture whose shapes its config.json tells: convert the base to safetensors"
        )
    return Base(str(config.get("_name_or_path") or folder), modules, text.get("vocab_size") or 0)


def _whole(headers: dict[str, tensors.Tensor]) -> dict[str, Shape | None]:
    return {
        name.removesuffix(".weight"): (t.shape[0], t.shape[1])
        for name, t in headers.items()
        if name.endswith(".weight") and len(t.shape) == 2 and t.dtype not in ("U8", "I8", "I32")
    }


def _packed(headers: dict[str, tensors.Tensor]) -> dict[str, Shape | None]:
    """Modules of quantised models: AWQ and GPTQ `qweight`, compressed-tensors `weight_packed`, bitsandbytes."""
    return {
        name.rsplit(".", 1)[0]: None
        for name, t in headers.items()
        if name.endswith((".qweight", ".weight_packed")) or (name.endswith(".weight") and t.dtype in ("U8", "I8"))
    }


def _expected(config: dict[str, Any]) -> dict[str, Shape]:
    """The projections of a Llama-like decoder, as its config says. Empty for others."""
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        inner, layers = int(config["intermediate_size"]), int(config["num_hidden_layers"])
        head = int(config.get("head_dim") or hidden // heads)
        groups = int(config.get("num_key_value_heads") or heads)
        vocabulary = int(config["vocab_size"])
    except (KeyError, TypeError, ValueError):
        return {}
    if config.get("model_type") not in {
        "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "granite", "olmo2", "smollm3",
    }:  # fmt: skip
        return {}
    one = {
        "self_attn.q_proj": (heads * head, hidden),
        "self_attn.k_proj": (groups * head, hidden),
        "self_attn.v_proj": (groups * head, hidden),
        "self_attn.o_proj": (hidden, heads * head),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    both = {f"layers.{n}.{name}": shape for n in range(layers) for name, shape in one.items()}
    return {**both, "lm_head": (vocabulary, hidden), "embed_tokens": (vocabulary, hidden)}
