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
    strategy: Literal["Auto", "DDP", "FSDP2", "ZeRO1", "ZeRO2", "ZeRO3"] = "Auto"
    """DDP (every process holds everything) or DeepSpeed's ZeRO (arXiv 1910.02054): the optimizer's state (ZeRO1), also
    the gradients (ZeRO2), also the weights (ZeRO3) are shared out among the processes. FSDP2: torch's fully_shard
    (arXiv 2304.11277), which shares all three out. Auto: the first of DDP, ZeRO2, ZeRO3, ZeRO3 with offload that fits
    the memory by its estimate."""
    offload: Literal["None", "Optimizer", "All"] = "None"
    """Keep the optimizer's state, or also the weights, in the host's memory."""


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
