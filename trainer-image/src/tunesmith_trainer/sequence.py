"""Sequence parallelism: processes side by side share each row along its length, and the heads while they attend
(Ulysses: arXiv 2309.14509), by DeepSpeed's attention. Under any strategy: to DDP, ZeRO and FSDP2 the parts of a row are
rows of their own, and the loss counts tokens over all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import pad
from tunesmith.training.plan import TrainPlan

from tunesmith_trainer.errors import ConfigError

FIELD = "spec.distribution.sequenceParallel"
IGNORED = -100


class Part:
    """A collator that leaves of another's batch the part of one process, filled up so that all have as much."""

    def __init__(self, inner: Callable[[list[dict[str, Any]]], dict[str, Any]], size: int, rank: int) -> None:
        self.inner, self.size, self.rank = inner, size, rank % size

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """input_ids, attention_mask, labels, position_ids in the whole row, and shift_labels: what follows each token,
        the first one of the next part included. All [rows, length / size].
        """
        whole = self.inner(examples)
        rows, length = whole["input_ids"].shape
        whole["shift_labels"] = pad(whole["labels"], (0, 1), value=IGNORED)[:, 1:]
        own = slice(each := -(-length // self.size) * self.rank, each + -(-length // self.size))
        batch = {}
        for name, tensor in whole.items():
            fill = IGNORED if name.endswith("labels") else 0
            batch[name] = pad(tensor, (0, -length % self.size), value=fill)[:, own].contiguous()
        batch["position_ids"] = torch.arange(own.start, own.stop).expand(rows, -1).contiguous()
        return batch


def check_weights(plan: TrainPlan) -> None:
    """Refuse turns with weights of their own where rows are shared. Raises ConfigError."""
    if plan.distribution.sequence_parallel > 1:
        raise ConfigError(
            f"{FIELD}: {plan.distribution.sequence_parallel}, but rows have turns with a loss or weight other than "
            "0 and 1, which processes that share rows do not know: use 1, or leave the weights out"
        )


def check_model(model: Any, size: int) -> None:
    """See that attention alone looks from one token at others, and at all before it. Raises ConfigError."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    # With no mask of its own, torch's attention would look beyond the window.
    if not kinds and getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        kinds = {"sliding_attention"}
    if kinds:
        raise ConfigError(
            f"{FIELD}: {size}, but layers of the model are {sorted(kinds)}: only full attention can be shared along "
            "the row: use 1, or another model"
        )
    heads, keys = config.num_attention_heads, getattr(config, "num_key_value_heads", config.num_attention_heads)
    if heads % size or (keys % size and size % keys):
        raise ConfigError(
            f"{FIELD}: {size} does not divide the model's {heads} heads and {keys} key-value heads: use a number that "
            "does"
        )


def begin(model: Any, plan: TrainPlan) -> None:
    """Make the model's attention look at whole rows of which this process has a part."""
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    size = plan.distribution.sequence_parallel
    check_model(model, size)
    UlyssesSPAttentionHF.register_with_transformers(
        model,
        core_attn_implementation=model.config._attn_implementation,
        sequence_parallel_size=size,
        micro_batch_size=plan.training.micro_batch_size,
        disable_in_eval=True,
    )
