"""Tensors of the known architectures, by their configuration alone: name, shape, and how many of them there are.

Names are those of the published checkpoints; `layers.0` stands for all layers of its kind, `experts.0-7` for eight.
A family is what differs from Llama: the classes in transformers' `models/<model_type>/modeling_*.py` are the source.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

Shape = tuple[str, tuple[int, ...], int]


class UnknownArchitectureError(ValueError):
    """Its tensors cannot be told from its configuration."""


class Family(NamedTuple):
    """What differs from Llama. A bias is always there, never, or as a field of the configuration says."""

    tied: bool = False
    """Whether the head is the embeddings where the configuration says nothing."""
    qkv_bias: bool | str = False
    out_bias: bool | str = False
    mlp_bias: bool | str = False
    norms: int = 2
    """Norms of a layer, of the hidden size."""
    norm_bias: bool = False
    qk_norm: str = ""
    """Norms of queries and keys: `head` (of one head's size) or `all` (of all heads')."""
    fused: bool = False
    """One matrix for queries, keys and values, and one for gate and way up."""
    plain: tuple[str, str, str] | None = None
    """Names of a feed-forward part without a gate, and of the output projection of the attention."""
    head_bias: bool = False
    adapted_experts: bool = False
    """Whether PEFT gives its experts and their router adapters where all linear modules get some."""
    defaults: Mapping[str, int] = {}


GEMMA3_DEFAULTS = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262_208}
FAMILIES = {
    "llama": Family(qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias"),
    "mistral": Family(),
    "smollm3": Family(tied=True, qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias"),
    "granite": Family(qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias"),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(
        qkv_bias="attention_bias", out_bias="attention_bias", qk_norm="head", defaults={"head_dim": 128}
    ),
    "gemma": Family(tied=True, qkv_bias="attention_bias", out_bias="attention_bias", defaults={"head_dim": 256}),
    "gemma2": Family(
        tied=True, qkv_bias="attention_bias", out_bias="attention_bias", norms=4, defaults={"head_dim": 256}
    ),
    "gemma3_text": Family(
        tied=True, qkv_bias="attention_bias", out_bias="attention_bias", norms=4, qk_norm="head",
        defaults=GEMMA3_DEFAULTS,
    ),
    "olmo2": Family(qkv_bias="attention_bias", out_bias="attention_bias", qk_norm="all"),
    "phi3": Family(fused=True),
    "phi": Family(
        qkv_bias=True, out_bias=True, mlp_bias=True, norms=1, norm_bias=True, plain=("fc1", "fc2", "dense"),
        head_bias=True,
    ),
    "starcoder2": Family(
        tied=True, qkv_bias="use_bias", out_bias="use_bias", mlp_bias="use_bias", norm_bias=True,
        plain=("c_fc", "c_proj", "o_proj"), defaults={"use_bias": 1},
    ),
    "mixtral": Family(adapted_experts=True),
    "qwen2_moe": Family(qkv_bias=True),
    "qwen3_moe": Family(
        qkv_bias="attention_bias", out_bias="attention_bias", qk_norm="head", adapted_experts=True
    ),
}  # fmt: skip
MOST_LAYERS = 10_000
# Multimodal model_type -> of its language model.
NESTED = {"gemma3": "gemma3_text", "llava": "llama"}


def family_of(config: Mapping[str, Any], text: Mapping[str, Any]) -> Family | None:
    """The family of a language model, if it is a known one."""
    kind = text.get("model_type") or NESTED.get(str(config.get("model_type")), "")
    return FAMILIES.get(NESTED.get(kind, kind))


def completed(config: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, Any]:
    """A language model's configuration with what its family's class adds to it."""
    family = family_of(config, text)
    values = {key: value for key, value in text.items() if value is not None}
    return {**family.defaults, **values} if family else values


def is_tied(config: Mapping[str, Any], text: Mapping[str, Any], default: bool) -> bool:
    """Whether the head is the embeddings: as the configuration says, else as is usual in the family."""
    for part in (config, text):
        if "tie_word_embeddings" in part:
            return bool(part["tie_word_embeddings"])
    family = family_of(config, text)
    return default if family is None else family.tied


def adapts_experts(config: Mapping[str, Any], text: Mapping[str, Any]) -> bool:
    """Whether experts get adapters where all linear modules do."""
    family = family_of(config, text)
    return family is not None and family.adapted_experts


def tensors_of(config: Mapping[str, Any], text: Mapping[str, Any]) -> Iterator[Shape]:
    """All tensors of a model. Raises UnknownArchitectureError."""
    family = family_of(config, text)
    if family is None:
        raise UnknownArchitectureError(
            f"config.json says model_type {config.get('model_type')!r}, whose sizes are known from the headers of "
            "*.safetensors only"
        )
    if config is not text:
        yield from _vision(config, text)
    yield from _language(completed(config, text), family, not is_tied(config, text, family.tied))


def _language(values: Mapping[str, Any], family: Family, has_head: bool) -> Iterator[Shape]:
    hidden, layers, vocabulary = values["hidden_size"], values["num_hidden_layers"], values["vocab_size"]
    yield "model.embed_tokens.weight", (vocabulary, hidden), 1
    if has_head:
        yield "lm_head.weight", (vocabulary, hidden), 1
        if family.head_bias:
            yield "lm_head.bias", (vocabulary,), 1
    yield from _norm("model.norm", hidden, family, 1)
    if layers > MOST_LAYERS:
        raise ValueError(f"num_hidden_layers is {layers}")
    dense = frozenset(values.get("mlp_only_layers") or ())
    sparse = sum(_is_sparse(values, dense, index) for index in range(layers))
    for first, count in ((0, layers - sparse), (1, sparse)):
        if count:
            here = f"model.layers.{first}"
            yield from _attention(f"{here}.self_attn", values, family, count)
            for index in range(family.norms):
                yield from _norm(f"{here}.norm{index}", hidden, family, count)
            yield from (_experts if first else _mlp)(f"{here}.mlp", values, family, count)


def _is_sparse(values: Mapping[str, Any], dense: Collection[Any], index: int) -> bool:
    """Whether a layer has experts, as Qwen's two families of them count."""
    if values.get("model_type") == "mixtral":
        return True
    experts = values.get("num_experts") if str(values.get("model_type")).endswith("_moe") else 0
    return bool(experts) and index not in dense and (index + 1) % values.get("decoder_sparse_step", 1) == 0


def _bias(values: Mapping[str, Any], field: bool | str) -> bool:
    return bool(values.get(field)) if isinstance(field, str) else field


def _linear(name: str, inputs: int, outputs: int, bias: bool, count: int) -> Iterator[Shape]:
    yield f"{name}.weight", (outputs, inputs), count
    if bias:
        yield f"{name}.bias", (outputs,), count


def _norm(name: str, size: int, family: Family, count: int) -> Iterator[Shape]:
    yield f"{name}.weight", (size,), count
    if family.norm_bias:
        yield f"{name}.bias", (size,), count


def _attention(name: str, values: Mapping[str, Any], family: Family, count: int) -> Iterator[Shape]:
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    size = values.get("head_dim") or hidden // heads
    queries, keys = heads * size, (values.get("num_key_value_heads") or heads) * size
    bias = _bias(values, family.qkv_bias)
    if family.fused:
        yield from _linear(f"{name}.qkv_proj", hidden, queries + 2 * keys, bias, count)
    else:
        for part, outputs in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            yield from _linear(f"{name}.{part}", hidden, outputs, bias, count)
    out = family.plain[2] if family.plain else "o_proj"
    yield from _linear(f"{name}.{out}", queries, hidden, _bias(values, family.out_bias), count)
    if family.qk_norm:
        whole = family.qk_norm == "all"
        yield f"{name}.q_norm.weight", (queries if whole else size,), count
        yield f"{name}.k_norm.weight", (keys if whole else size,), count


def _mlp(name: str, values: Mapping[str, Any], family: Family, count: int, width: int | None = None) -> Iterator[Shape]:
    hidden, width, bias = values["hidden_size"], width or values["intermediate_size"], _bias(values, family.mlp_bias)
    if family.plain:
        yield from _linear(f"{name}.{family.plain[0]}", hidden, width, bias, count)
        yield from _linear(f"{name}.{family.plain[1]}", width, hidden, bias, count)
        return
    if family.fused:
        yield from _linear(f"{name}.gate_up_proj", hidden, 2 * width, bias, count)
    else:
        yield from _linear(f"{name}.gate_proj", hidden, width, bias, count)
        yield from _linear(f"{name}.up_proj", hidden, width, bias, count)
    yield from _linear(f"{name}.down_proj", width, hidden, bias, count)


def _experts(name: str, values: Mapping[str, Any], family: Family, count: int) -> Iterator[Shape]:
    hidden = values["hidden_size"]
    experts = values.get("num_local_experts") or values["num_experts"]
    width = values.get("moe_intermediate_size") or values["intermediate_size"]
    yield f"{name}.gate.weight", (experts, hidden), count
    yield from _mlp(f"{name}.experts.0-{experts - 1}", values, family, count * experts, width)
    if shared := values.get("shared_expert_intermediate_size"):
        yield from _mlp(f"{name}.shared_expert", values, family, count, shared)
        yield f"{name}.shared_expert_gate.weight", (1, hidden), count


def _vision(config: Mapping[str, Any], text: Mapping[str, Any]) -> Iterator[Shape]:
    """SigLIP's encoder and Gemma 3's projector."""
    vision = config.get("vision_config") or {}
    if config.get("model_type") != "gemma3" or "hidden_size" not in vision:
        raise UnknownArchitectureError(
            f"config.json says model_type {config.get('model_type')!r}, whose encoder's sizes are known from the "
            "headers of *.safetensors only"
        )
    hidden, width, layers, patch = (
        vision[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "patch_size")
    )
    tower = "vision_tower.vision_model"
    yield f"{tower}.embeddings.patch_embedding.weight", (hidden, 3, patch, patch), 1
    yield f"{tower}.embeddings.patch_embedding.bias", (hidden,), 1
    yield f"{tower}.embeddings.position_embedding.weight", ((vision["image_size"] // patch) ** 2, hidden), 1
    here = f"{tower}.encoder.layers.0"
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        yield from _linear(f"{here}.self_attn.{part}", hidden, hidden, True, layers)
    yield from _linear(f"{here}.mlp.fc1", hidden, width, True, layers)
    yield from _linear(f"{here}.mlp.fc2", width, hidden, True, layers)
    for part, count in (
        (f"{here}.layer_norm1", layers),
        (f"{here}.layer_norm2", layers),
        (f"{tower}.post_layernorm", 1),
    ):
        yield f"{part}.weight", (hidden,), count
        yield f"{part}.bias", (hidden,), count
    yield "multi_modal_projector.mm_input_projection_weight", (hidden, text["hidden_size"]), 1
    yield "multi_modal_projector.mm_soft_emb_norm.weight", (hidden,), 1
