"""How a FineTuneJob is spread over devices and nodes, and whether it fits them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from tunesmith.api.base import Model, Quantity, rule, rules


class Distribution(Model):
    """How the model is spread over the training processes."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.offload == 'None' || self.strategy in ['Auto', 'ZeRO2', 'ZeRO3']",
                "offload needs strategy Auto, ZeRO2 or ZeRO3",
            ),
            rule(
                "self.offload != 'All' || self.strategy in ['Auto', 'ZeRO3']",
                "offload All needs strategy Auto or ZeRO3",
            ),
        )
    )
    strategy: Literal["Auto", "DDP", "DeviceMap", "FSDP2", "ZeRO1", "ZeRO2", "ZeRO3"] = "Auto"
    """DDP (every process holds everything) or DeepSpeed's ZeRO (arXiv 1910.02054): the optimizer's state (ZeRO1), also
    the gradients (ZeRO2), also the weights (ZeRO3) are shared out among the processes. FSDP2: torch's fully_shard
    (arXiv 2304.11277), which shares all three out. DeviceMap: a process, one per pod by default, lays the layers over
    its GPUs, which compute one after the other (transformers' device_map); several processes are DDP of that. Auto: the
    first of DDP, ZeRO2, ZeRO3, ZeRO3 with offload that fits the memory by its estimate."""
    offload: Literal["None", "Optimizer", "All"] = "None"
    """Keep the optimizer's state, or also the weights, in the host's memory."""
    sequence_parallel: Annotated[int, Field(ge=1, le=1024)] = 1
    """Processes that share each row along its length, and the heads while they attend (Ulysses: arXiv 2309.14509): for
    rows too long for one device. Within any strategy but DeviceMap."""
    tensor_parallel: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes that share each weight matrix (arXiv 1909.08053), by transformers' plan of the model: for tuner Full.
    Several such groups share the weights among each other as FSDP2 does."""


class Memory(Model):
    """The estimate of the memory of one device, made from the model's configuration before any GPU is held."""

    check: Literal["Refuse", "Warn", "Disabled"] = "Refuse"
    """What becomes of a job that does not fit: it is refused, or a condition says so, or no estimate is made."""
    per_device: Quantity | None = None
    """Memory of one device, for example 80Gi. Default: of the GPUs, by the label nvidia.com/gpu.memory of the nodes;
    on CPU, resources.limits.memory divided among the processes."""


class Elastic(Model):
    """Go on with fewer nodes where not all of them can be had. The global batch stays as it is. For strategy DDP:
    with ZeRO, fewer processes would have to hold more each.
    """

    min_nodes: Annotated[int, Field(ge=1, le=1024)]
    """Start with no fewer."""
    wait_seconds: Annotated[int, Field(ge=0, le=86_400)] = 300
    """How long all nodes are waited for, each time that the pods start."""
