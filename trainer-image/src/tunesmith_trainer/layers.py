"""DeviceMap: a process lays the layers of its model over GPUs of its own, which compute one after the other; several
processes are DDP of that (transformers' device_map).
"""

from __future__ import annotations

import os
from typing import Any

from tunesmith.training.plan import TrainPlan

from tunesmith_trainer.errors import ConfigError

FIELD = "spec.distribution.strategy"


def own(plan: TrainPlan) -> range:
    """The numbers of this process's GPUs among its node's."""
    count = plan.distribution.devices
    first = int(os.environ.get("LOCAL_RANK", "0")) * count
    return range(first, first + count)


def begin(plan: TrainPlan, visible: int) -> None:
    """See that the GPUs are there, and say to accelerate which of them the rows go to. Raises ConfigError."""
    needed = plan.distribution.devices * plan.processes_per_node
    if visible != needed or plan.distribution.devices < 2:
        raise ConfigError(
            f"{FIELD}: DeviceMap, for {plan.processes_per_node} process(es) of {plan.distribution.devices} GPUs each, "
            f"but {visible} GPU(s) are there: ask for {needed}, two or more for each process, or use DDP"
        )
    os.environ["ACCELERATE_TORCH_DEVICE"] = f"cuda:{own(plan)[0]}"
    os.environ["ACCELERATE_BYPASS_DEVICE_MAP"] = "true"  # DDP then asks for no single device


def options(plan: TrainPlan, free: dict[int, int]) -> dict[str, Any]:
    """Arguments of from_pretrained: evenly over this process's GPUs, by their `free` bytes, and nowhere else."""
    return {"device_map": "balanced", "max_memory": {gpu: free[gpu] for gpu in own(plan)}}


def check(model: Any, plan: TrainPlan) -> None:
    """See that the layers are where the plan says. Raises ConfigError."""
    found = set(getattr(model, "hf_device_map", {}).values())
    if found != set(own(plan)):
        raise ConfigError(
            f"{FIELD}: DeviceMap over GPUs {list(own(plan))}, but layers are on {sorted(map(str, found))}: the model "
            "is too small to be laid out, or too large. Use DDP, or more GPUs"
        )
