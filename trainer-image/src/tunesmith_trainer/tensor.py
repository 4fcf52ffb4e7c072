"""Tensor parallelism: processes side by side share each weight matrix (arXiv 1909.08053), by the plan that transformers
has for the model. More groups than one share the weights out among each other, too, as FSDP2 does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunesmith.training.plan import TrainPlan

from tunesmith_trainer.errors import ConfigError

FIELD = "spec.distribution.tensorParallel"
FOLDER = "shared"
"""Of a checkpoint: weights that are trained, and the optimizer's state, each process its part."""


def config(plan: TrainPlan) -> Any:
    """How transformers is to lay the model out while it loads it; None: whole."""
    if plan.distribution.tensor_parallel == 1:
        return None
    from transformers.distributed import DistributedConfig

    check_heads(plan)
    return DistributedConfig(tp_size=plan.distribution.tensor_parallel, fsdp_size=plan.data_parallel)


def check_heads(plan: TrainPlan) -> None:
    """See that every process gets whole heads. Raises ConfigError."""
    found = json.loads((Path(plan.model.path) / "config.json").read_text())
    heads = found.get("num_attention_heads", 1)
    keys = found.get("num_key_value_heads") or heads
    size = plan.distribution.tensor_parallel
    if heads % size or keys % size:
        raise ConfigError(
            f"{FIELD}: {size} does not divide the model's {heads} heads and {keys} key-value heads: use a number that "
            "does"
        )


def check(model: Any, plan: TrainPlan) -> None:
    """See that the model's matrices are shared as the plan says. Raises ConfigError."""
    from torch.distributed.tensor import DTensor

    size = plan.distribution.tensor_parallel
    parts = [p for p in model.parameters() if isinstance(p, DTensor) and "tp" in (p.device_mesh.mesh_dim_names or ())]
    shared = [p for p in parts if p.device_mesh["tp"].size() == size and any(one.is_shard() for one in p.placements)]
    if not shared:
        raise ConfigError(
            f"{FIELD}: {size}, but no weight of the model is shared: transformers has no plan for it. Use 1, with "
            "strategy FSDP2 or ZeRO3"
        )


def save(trainer: Any, folder: str) -> None:
    """Write what is trained, and the optimizer's state; every process calls it."""
    from torch.distributed import checkpoint

    checkpoint.save(_state(trainer), checkpoint_id=str(Path(folder) / FOLDER))


def load(trainer: Any, folder: str) -> None:
    """Read again what `save` wrote."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import set_state_dict

    found = _state(trainer)
    checkpoint.load(found, checkpoint_id=str(Path(folder) / FOLDER))
    set_state_dict(
        trainer.model, trainer.optimizer.optimizer,
        model_state_dict=found["model"], optim_state_dict=found["optimizer"], options=_options(),
    )  # fmt: skip


def _options() -> Any:
    from torch.distributed.checkpoint.state_dict import StateDictOptions

    return StateDictOptions(ignore_frozen_params=True, strict=False)


def _state(trainer: Any) -> dict[str, Any]:
    from torch.distributed.checkpoint.state_dict import get_state_dict

    model, optimizer = get_state_dict(trainer.model, trainer.optimizer.optimizer, options=_options())
    return {"model": model, "optimizer": optimizer}
