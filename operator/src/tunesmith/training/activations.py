"""Memory that comes and goes within one step: what the forward pass keeps for the backward pass, and the logits.

What is kept follows from how transformers' modules save tensors, layer by layer (docs/memory.md has the table);
tests/memory compares it with autograd's own accounting. Attention is torch's scaled_dot_product_attention, which keeps
no length x length matrix (arXiv 2205.14135); only a mask has that shape, where rows are packed or padded.
"""

from __future__ import annotations

from typing import NamedTuple

from tunesmith.training.architecture import ModelFacts
from tunesmith.training.plan import TrainPlan

# trl.kernels.chunked_logprob: logits are made in tiles of so many tokens x entries of the vocabulary.
TILE_TOKENS, TILE_VOCABULARY = 4096, 32_768
TORCH_TILES = 6  # float32 copies of a tile where there is no Triton
FEED_FORWARD_OUTPUTS = ("down_proj", "fc2", "c_proj", "w2", "dense_4h_to_h", "wo")
ATTENTION_INPUTS = ("q_proj", "k_proj", "v_proj", "qkv_proj")
ATTENTION_OUTPUTS = ("o_proj", "out_proj", "dense", "wo_proj")


class Widths(NamedTuple):
    """Bytes of an element in the matrix products and in the stream between the layers."""

    compute: int
    residual: int


def saved_by_layer(plan: TrainPlan, facts: ModelFacts, widths: Widths, cpu: bool) -> int:
    """Bytes that one layer keeps of one token for the backward pass."""
    compute, residual = widths
    hidden, inner = facts.hidden, facts.intermediate
    queries, keys = facts.heads * facts.head_dim, facts.kv_heads * facts.head_dim
    attention = compute * (2 * queries + 2 * keys) + 4 * facts.heads
    routed = 2 * compute * facts.experts_per_token * hidden
    if plan.tuner.type == "Full":
        # Two norms, each its input in float32, normalised, and as the next products take it: where autocast makes
        # that of another type, each product has its own.
        products = (2 if facts.gated else 1) + 3 if compute != residual else 2
        norms = (2 * (4 + residual) + products * compute) * hidden
        return norms + attention + compute * (4 if facts.gated else 2) * inner + routed
    # Frozen weights need no inputs: of the norms only the float32 input stays, of the products what adapters take.
    frozen = 2 * 4 * hidden + attention + compute * (3 if facts.gated else 1) * inner + routed
    return frozen + adapters_of_layer(plan, facts, compute, cpu)


def adapters_of_layer(plan: TrainPlan, facts: ModelFacts, compute: int, cpu: bool) -> int:
    """Bytes that the adapters of one layer keep of one token."""
    wanted = {target.rsplit(".", 1)[-1] for target in plan.tuner.target_modules}
    names = [name for name in facts.linears if not wanted or name in wanted]
    # What is dropped: a byte of an element from the fused kernel, a float32 where there is none.
    dropped = (4 if cpu else 1) if plan.tuner.dropout else 0
    kept: dict[str, int] = {}
    for name in names:
        own, size = name, facts.hidden
        if name in FEED_FORWARD_OUTPUTS:
            size = facts.intermediate
        elif name in ATTENTION_OUTPUTS:
            size = facts.heads * facts.head_dim
        elif not dropped and compute == 4:  # modules side by side share an input that none of them changes
            own = "attention" if name in ATTENTION_INPUTS else "feed-forward"
        kept[own] = size * (compute + dropped)
    return sum(kept.values()) + len(names) * plan.tuner.rank * compute


def masks(plan: TrainPlan, facts: ModelFacts, compute: int) -> int:
    """Bytes of the attention's mask and of what the kernel makes of it. One row without padding needs none."""
    rows, length = plan.training.micro_batch_size, plan.training.max_length
    if plan.training.packing:  # TRL puts all packed rows into one
        entries = (rows * length) ** 2
    elif rows > 1:
        entries = rows * length**2
    else:
        return 0
    return entries * (1 + compute * (1 if plan.training.gradient_checkpointing else facts.layers))


def logits(plan: TrainPlan, facts: ModelFacts, compute: int, cpu: bool) -> int:
    """Bytes of TRL's fused head: one tile of logits, and float32 gradients of its input and of its weight."""
    tokens = plan.training.micro_batch_size * plan.training.max_length
    tile = min(tokens, TILE_TOKENS) * min(TILE_VOCABULARY, facts.vocabulary)
    gradient = 4 * facts.vocabulary * facts.hidden if plan.tuner.type == "Full" else 0
    return tile * (compute + (4 * TORCH_TILES if cpu else 0)) + 4 * tokens * facts.hidden + gradient


def saved(plan: TrainPlan, facts: ModelFacts, widths: Widths, cpu: bool = False) -> int:
    """Bytes that are kept from the forward to the backward pass."""
    tokens = plan.training.micro_batch_size * plan.training.max_length
    layer = saved_by_layer(plan, facts, widths, cpu)
    last = (4 + (2 if plan.tuner.type == "Full" else 1) * widths.residual) * facts.hidden  # norm and head
    kept = widths.residual * facts.hidden if plan.training.gradient_checkpointing else layer
    return tokens * (facts.layers * kept + last)


def peak(plan: TrainPlan, facts: ModelFacts, widths: Widths, cpu: bool) -> int:
    """Bytes of all activations at their largest: the first of the layers' backward passes, or the head's."""
    tokens = plan.training.micro_batch_size * plan.training.max_length
    gradients = tokens * widths.compute * 2 * (facts.intermediate + facts.hidden)
    again = tokens * saved_by_layer(plan, facts, widths, cpu) if plan.training.gradient_checkpointing else 0
    head = logits(plan, facts, widths.compute, cpu)
    return saved(plan, facts, widths, cpu) + masks(plan, facts, widths.compute) + max(gradients + again, head)
