"""What a model takes of an engine's memory, by its files and without torch. The engine's own share is not in it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from tunesmith.agent import tensors
from tunesmith.agent.base import Base
from tunesmith.serving.contract import Footprint
from tunesmith.training.capabilities import quantizer

FLOATS = {"F16", "BF16", "F32", "F64"}


def measure(folder: Path, base: Base, dtype: str, max_rank: int, max_loras: int) -> Footprint:
    """The footprint of the model in `folder`. Raises OSError and ValueError."""
    config = json.loads((folder / "config.json").read_bytes())
    text, how = config.get("text_config") or config, quantizer(config)
    width = 4 if dtype == "float32" else 2  # vLLM holds float32 models in 16 bits, too, unless told
    weights = sum(
        math.prod(t.shape) * (width if t.dtype in FLOATS else tensors.SIZES.get(t.dtype, 1))
        for path in sorted(folder.glob("*.safetensors"))
        for t in tensors.read(path).values()
    )
    # Linear modules only: buffers for the embeddings are not kept.
    sides = sum(
        max((out + into for out, into in (shape for shape in shapes if shape)), default=0)
        for name, shapes in base.modules.items()
        if not name.startswith(("embed", "lm_head"))
    )
    return Footprint(
        weights_bytes=weights,
        kv_bytes_per_token=_kv_elements(text) * width,
        adapters_bytes=max_loras * max_rank * sides * width,
        max_model_len=int(text.get("max_position_embeddings") or 0),
        quantization=" ".join(str(how[key]) for key in ("quant_method", "format") if how.get(key)) or None,
    )


def _kv_elements(text: dict[str, Any]) -> int:
    """Numbers that the KV cache holds for one token. 0: the configuration does not tell."""
    try:
        layers = int(text["num_hidden_layers"])
        if latent := text.get("kv_lora_rank"):  # multi-head latent attention: one latent vector for all heads
            return layers * (int(latent) + int(text.get("qk_rope_head_dim") or 0))
        heads = int(text["num_attention_heads"])
        head = int(text.get("head_dim") or int(text["hidden_size"]) // heads)
        return 2 * layers * int(text.get("num_key_value_heads") or heads) * head
    except (KeyError, TypeError, ValueError):
        return 0
