"""Sizes of a model, out of its config.json and, where they are known, the headers of its safetensors files.

The tensors of a known architecture follow from its configuration alone. Headers are exact for any architecture. Both
ways lead to a list of tensors, and that to the facts that an estimate of memory needs. No weight is read.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from tunesmith.api.base import Model
from tunesmith.training.families import UnknownArchitectureError, adapts_experts, completed, is_tied, tensors_of

MAX_NAMES = 40  # of linear modules, so that facts stay small
NO_WEIGHTS = re.compile(r"(inv_freq|masked_bias|attn\.bias|position_ids|num_batches_tracked)$")
VISION = re.compile(r"(^|\.)(vision|visual|multi_modal|multimodal|mm_|image|audio|patch)")
EMBEDDINGS = re.compile(
    r"(^|\.)(embed_tokens|wte|wpe|word_embeddings|embed_in|tok_embeddings|embed_positions)\.weight$"
)
HEAD = re.compile(r"(^|\.)(lm_head|embed_out)\.(weight|bias)$|^output\.weight$")
EXPERTS = re.compile(r"\.experts\.")
ROUTER = re.compile(r"\.(gate|router)(\.\w+)?\.(weight|bias)$")
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")
LINEAR = re.compile(r"(?:^|\.)(\w+)\.weight$")
Count = Annotated[int, Field(ge=0, le=10**16)]
"""More than any model has, and few enough to reckon with: a config.json holds whatever its author wrote."""


class Tensor(NamedTuple):
    """Tensors of one shape: of a whole model's list, `number` look like this one."""

    name: str
    shape: tuple[int, ...]
    number: int = 1

    @property
    def size(self) -> int:
        """Elements of one."""
        size = 1
        for side in self.shape:
            size *= side
        return size


class ModelFacts(Model):
    """What an estimate needs to know of a model. Numbers count parameters, not bytes."""

    architecture: str
    """The class that config.json names, else its model_type."""
    exact: bool
    """Whether the tensors were read from the files' headers; else they follow from the configuration."""
    dtype: str = "float32"
    """Type of the weights in the files."""
    quantized: bool = False
    """Whether the weights are so in the files. Then each process loads them whole."""
    packed: Literal["NF4", "Int8"] | None = None
    """How linear modules are held that stay quantised; others are turned back when they are loaded."""
    parameters: Count
    embeddings: Count
    head: Count
    """0 where it is the embeddings."""
    tied: bool
    layer: Count
    """The largest layer."""
    largest: Count
    """The largest tensor."""
    linears: dict[str, tuple[Count, Count]]
    """Last part of the linear modules' names -> parameters of their weights, and the sum of their two sides: what a
    LoRA adapter of rank 1 has. Without the head, and without experts, which are no modules of their own."""
    experts: Count = 0
    experts_sides: Count = 0
    """What an adapter of rank 1 has for the experts and their routers, where PEFT gives them some."""
    vision: Count = 0
    """Encoder of images, and what connects it to the language model."""
    layers: Count
    hidden: Count
    intermediate: Count
    """Width of the feed-forward part that one token passes: of all experts that it is sent to."""
    gated: bool = True
    """Whether the feed-forward part has a gate beside its way up."""
    heads: Count
    kv_heads: Count
    head_dim: Count
    vocabulary: Count
    expert_count: Count = 0
    experts_per_token: Count = 0

    @property
    def linear(self) -> int:
        """Parameters of the linear modules' weights."""
        return sum(parameters for parameters, _ in self.linears.values())


class Found(NamedTuple):
    """Facts, or why there are none."""

    facts: ModelFacts | None
    reason: str = ""


def facts(config: Mapping[str, Any], headers: Iterable[tuple[str, tuple[int, ...]]] | None = None) -> Found:
    """Facts of a model by its config.json and, where known, name and shape of all its tensors."""
    text = language_part(config)
    try:
        if headers is None:
            tensors = [Tensor(*one) for one in tensors_of(config, text)]
        else:
            tensors = [Tensor(name, shape) for name, shape in headers if not NO_WEIGHTS.search(name)]
        return Found(_facts(config, text, tensors, exact=headers is not None))
    except UnknownArchitectureError as error:
        return Found(None, str(error))
    except ValidationError as error:
        field = error.errors()[0]["loc"][0]
        return Found(None, f"config.json leads to a size that no model has ({field}): look at its numbers")
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        return Found(None, f"config.json lacks what the sizes of a model follow from: {type(error).__name__}: {error}")


def language_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's configuration: of a multimodal model it is nested."""
    for name in ("text_config", "language_config", "llm_config", "thinker_config"):
        if isinstance(config.get(name), dict):
            return language_part(config[name])
    return config


def _facts(config: Mapping[str, Any], text: Mapping[str, Any], tensors: list[Tensor], exact: bool) -> ModelFacts:
    sizes: dict[str, int] = defaultdict(int)
    layers: dict[int, int] = defaultdict(int)
    linears: dict[str, tuple[int, int]] = {}
    largest, embedding, sides = 0, (0, 0), 0
    has_head = any(HEAD.search(tensor.name) for tensor in tensors)
    tied = is_tied(config, text, default=not has_head)
    for tensor in tensors:
        if tied and HEAD.search(tensor.name):
            continue
        total = tensor.size * tensor.number
        part = _part(tensor)
        sizes[part] += total
        sizes["all"] += total
        largest = max(largest, tensor.size)
        if part == "embeddings" and tensor.size > embedding[0] * embedding[1]:
            embedding = (tensor.shape[0], tensor.shape[-1])
        if part != "vision" and (found := LAYER.search(tensor.name)):
            layers[int(found[1])] += tensor.size if exact else _of_a_layer(tensor)
        if name := _linear(tensor, part):
            before, sides = linears.get(name, (0, 0))
            linears[name] = (before + total, sides + sum(tensor.shape) * tensor.number)
    if not sizes["all"]:
        raise ValueError("no tensors")
    text = completed(config, text)
    hidden = int(_first(text, "hidden_size", "n_embd", "d_model", "dim") or embedding[1])
    heads = int(_first(text, "num_attention_heads", "n_head", "n_heads") or 1)
    per_token = int(_first(text, "num_experts_per_tok", "moe_topk", "num_experts_per_token") or 0)
    experts = int(_first(text, "num_local_experts", "num_experts", "n_routed_experts") or 0) if sizes["experts"] else 0
    return ModelFacts(
        architecture=str((config.get("architectures") or [config.get("model_type", "unknown")])[0]),
        exact=exact,
        dtype=str(config.get("dtype") or config.get("torch_dtype") or text.get("torch_dtype") or "float32"),
        parameters=sizes["all"],
        embeddings=sizes["embeddings"],
        head=sizes["head"],
        tied=tied,
        layer=max(layers.values(), default=0),
        largest=largest,
        linears=_shortened(linears),
        experts=sizes["experts"],
        experts_sides=sum(map(_expert_sides, tensors)) if adapts_experts(config, text) else 0,
        vision=sizes["vision"],
        layers=int(_first(text, "num_hidden_layers", "n_layer", "n_layers") or len(layers)),
        hidden=hidden,
        intermediate=_width(text, hidden, per_token if experts else 0),
        gated=any("gate" in name or "w3" in name for name in linears) or bool(experts),
        heads=heads,
        kv_heads=int(_first(text, "num_key_value_heads", "multi_query_group_num") or heads),
        head_dim=int(_first(text, "head_dim") or hidden // heads),
        vocabulary=int(_first(text, "vocab_size") or embedding[0]),
        expert_count=experts,
        experts_per_token=per_token if experts else 0,
    )


def _part(tensor: Tensor) -> str:
    if VISION.search(tensor.name):
        return "vision"
    if EMBEDDINGS.search(tensor.name):
        return "embeddings"
    if HEAD.search(tensor.name):
        return "head"
    return "experts" if EXPERTS.search(tensor.name) else "others"


def _linear(tensor: Tensor, part: str) -> str | None:
    """Name of the linear module that this tensor is the weight of."""
    if len(tensor.shape) != 2 or part in ("embeddings", "head", "experts"):
        return None
    if ROUTER.search(tensor.name) or "embed" in tensor.name.rsplit(".", 2)[-2]:
        return None
    found = LINEAR.search(tensor.name)
    return found[1] if found else None


def _expert_sides(tensor: Tensor) -> int:
    """PEFT holds a gate and a way up as one matrix, whose adapter has twice the rank."""
    if len(tensor.shape) != 2:
        return 0
    if EXPERTS.search(tensor.name):
        outputs, inputs = tensor.shape
        last = tensor.name.rsplit(".", 2)[-2]
        return tensor.number * (inputs + outputs * (1 if last in ("down_proj", "w2") else 2))
    return tensor.number * sum(tensor.shape) if ROUTER.search(tensor.name) else 0


def _of_a_layer(tensor: Tensor) -> int:
    """Elements of one layer: experts are counted over all layers of their kind."""
    experts = re.search(r"\.experts\.0-(\d+)\.", tensor.name)
    return tensor.size * (int(experts[1]) + 1 if experts else 1)


def _width(text: Mapping[str, Any], hidden: int, per_token: int) -> int:
    dense = int(_first(text, "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size") or 4 * hidden)
    if not per_token:
        return dense
    one = int(_first(text, "moe_intermediate_size") or dense)
    return per_token * one + int(_first(text, "shared_expert_intermediate_size") or 0)


def _first(config: Mapping[str, Any], *names: str) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None)


def _shortened(linears: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    if len(linears) <= MAX_NAMES:
        return linears
    order = sorted(linears, key=lambda name: linears[name], reverse=True)
    kept = {name: linears[name] for name in order[: MAX_NAMES - 1]}
    rest = [linears[name] for name in order[MAX_NAMES - 1 :]]
    return {**kept, "others": (sum(p for p, _ in rest), sum(s for _, s in rest))}
