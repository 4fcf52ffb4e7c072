"""How the model is spread over the processes: DDP and FSDP2 by torch, ZeRO 1 to 3 by DeepSpeed, on GPUs and on CPUs
alike.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tunesmith.training.plan import DistributionPlan, TrainPlan

from tunesmith_trainer import tensor
from tunesmith_trainer.errors import ConfigError

if TYPE_CHECKING:
    import torch

STAGES = {"DDP": 0, "DeviceMap": 0, "FSDP2": 0, "ZeRO1": 1, "ZeRO2": 2, "ZeRO3": 3}
"""DeepSpeed's stage; 0: it has no part in it."""
SPLIT = ("ZeRO3", "FSDP2")
TIMEOUT_SECONDS = "600"
CHECKPOINTED = "_checkpoint_wrapped_module."
"""Within names of parameters, where torch computes activations anew."""


def is_split(distribution: DistributionPlan) -> bool:
    """Whether no process holds the weights whole."""
    return distribution.strategy in SPLIT or distribution.tensor_parallel > 1


def timeout() -> timedelta:
    """How long processes wait for each other in a step before the attempt ends with CollectiveTimeout."""
    return timedelta(seconds=float(os.environ.get("TUNESMITH_COLLECTIVE_TIMEOUT_SECONDS", TIMEOUT_SECONDS)))


def check(distribution: DistributionPlan) -> None:
    """Refuse what no strategy can do."""
    stage = STAGES[distribution.strategy]
    if distribution.offload != "None" and not stage:
        raise ConfigError(
            f"spec.distribution.offload: {distribution.offload}, but strategy {distribution.strategy} keeps all on the "
            "device: use ZeRO1, ZeRO2 or ZeRO3, or offload None"
        )
    if distribution.offload == "All" and stage < 3:
        raise ConfigError(
            f"spec.distribution.offload: All moves the weights, too, which {distribution.strategy} does not split: use "
            "strategy ZeRO3, or offload Optimizer"
        )


def join(plan: TrainPlan, cuda: bool) -> None:
    """Join the processes to one group. ZeRO needs a group of one even where a process is alone."""
    import torch

    from tunesmith_trainer import group

    stage, alone = STAGES[plan.distribution.strategy], plan.world_size == 1
    sharded = plan.distribution.strategy == "FSDP2" and plan.distribution.tensor_parallel == 1
    if alone and sharded:
        raise ConfigError(
            "spec.distribution.strategy: FSDP2 shares the weights out among processes, and there is one: use DDP, or "
            "more of spec.processesPerNode or spec.nodes"
        )
    if alone and not stage:
        return
    local = int(os.environ.setdefault("LOCAL_RANK", "0"))
    if cuda:
        torch.cuda.set_device(local * plan.distribution.devices)
    group.join(
        timeout(),
        "nccl" if cuda else "gloo",
        **{"store": torch.distributed.HashStore(), "rank": 0, "world_size": 1} if alone else {},
    )
    if stage:
        _begin_deepspeed(cuda)
    elif plan.distribution.sequence_parallel > 1:
        _load_deepspeed(cuda)
    if (sharded or plan.distribution.tensor_parallel > 1) and not cuda:
        _begin_fsdp_on_cpu()


def _load_deepspeed(cuda: bool) -> None:
    if not cuda:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    # Else it looks for compilers, and builds an operator for processes of one machine that gloo does without.
    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed("nccl" if cuda else "gloo", auto_mpi_discovery=False, timeout=timeout())


def _begin_deepspeed(cuda: bool) -> None:
    _load_deepspeed(cuda)
    if cuda:
        return
    import torch

    # accelerate turns DeepSpeed into DDP, without a word, where it is told to use CPUs.
    from accelerate import PartialState
    from accelerate.utils import DistributedType
    from transformers import training_args

    PartialState._reset_state()
    PartialState(cpu=True, backend="gloo")
    PartialState._shared_state.update(
        distributed_type=DistributedType.DEEPSPEED,
        backend="gloo",
        num_processes=torch.distributed.get_world_size(),
        process_index=torch.distributed.get_rank(),
        local_process_index=int(os.environ["LOCAL_RANK"]),
    )
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    # transformers takes bfloat16 for a GPU's alone where it is not told to use CPUs.
    training_args.is_torch_bf16_gpu_available = lambda: True


def _begin_fsdp_on_cpu() -> None:
    # accelerate turns FSDP into DDP, without a word, where it finds processes on CPUs, and knows no tensor parallelism
    # there. torch itself does both over gloo.
    from accelerate import PartialState
    from accelerate.utils import DistributedType
    from transformers import training_args

    PartialState._reset_state()
    PartialState(cpu=True, backend="gloo")
    # Of this, and of the plugin that transformers makes of fsdp_config, AcceleratorState makes FSDP.
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    training_args.is_torch_bf16_gpu_available = lambda: True  # as above


def arguments(plan: TrainPlan, cuda: bool) -> dict[str, Any]:
    """The strategy's part of TrainingArguments."""
    stage = STAGES[plan.distribution.strategy]
    if plan.distribution.strategy == "FSDP2" and plan.distribution.tensor_parallel == 1:
        return {
            "fsdp": True,
            "fsdp_config": {
                "version": 2,
                "reshard_after_forward": True,
                "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",  # the layers that the model's class names
                "activation_checkpointing": plan.training.gradient_checkpointing,
                "state_dict_type": "SHARDED_STATE_DICT",  # each process writes its part of a checkpoint
                "cpu_ram_efficient_loading": False,
            },
            **({} if cuda else {"accelerator_config": {"use_configured_state": True}}),
        }
    if plan.distribution.tensor_parallel > 1:  # by how the model is loaded
        return {} if cuda else {"accelerator_config": {"use_configured_state": True}}
    if not stage:
        return {
            "use_cpu": not cuda,
            "ddp_backend": ("nccl" if cuda else "gloo") if plan.world_size > 1 else None,
            "ddp_find_unused_parameters": False,
        }
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": cuda}
    if plan.distribution.offload != "None":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": cuda}
    if plan.distribution.offload == "All":
        zero["offload_param"] = {"device": "cpu", "pin_memory": cuda}
    return {
        "deepspeed": {
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "train_batch_size": "auto",
            "gradient_clipping": "auto",
            "bf16": {"enabled": "auto"},
            "zero_optimization": zero,
            # torch's AdamW: DeepSpeed's own would be compiled at run time.
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
        **({} if cuda else {"accelerator_config": {"use_configured_state": True}}),
    }


def check_engine(wrapped: Any, plan: TrainPlan) -> None:
    """See that what is about to run is what the plan says. Raises ConfigError."""
    from torch.nn.parallel import DistributedDataParallel

    asked, found = plan.distribution, type(wrapped).__name__
    stage = STAGES[asked.strategy]
    if asked.tensor_parallel > 1:
        tensor.check(wrapped, plan)
        return
    if asked.strategy == "FSDP2":
        _check_fsdp(wrapped, plan)
        return
    if not stage:
        if isinstance(wrapped, DistributedDataParallel) != (plan.world_size > 1) or found == "DeepSpeedEngine":
            over = f"{asked.strategy} over {plan.world_size} process(es)"
            raise ConfigError(f"strategy {over}, but the model is a {found}")
        return
    from deepspeed import DeepSpeedEngine

    if not isinstance(wrapped, DeepSpeedEngine):
        raise ConfigError(f"spec.distribution.strategy: {asked.strategy}, but the model is a {found}, not DeepSpeed's")
    engine: Any = wrapped
    if engine.zero_optimization_stage() != stage or engine.dp_world_size != plan.world_size:
        raise ConfigError(
            f"spec.distribution.strategy: {asked.strategy} over {plan.world_size} process(es), but DeepSpeed runs "
            f"stage {engine.zero_optimization_stage()} over {engine.dp_world_size}"
        )
    offloads = (bool(engine.zero_offload_optimizer()), bool(engine.zero_offload_param()))
    if offloads != (asked.offload != "None", asked.offload == "All"):
        raise ConfigError(
            f"spec.distribution.offload: {asked.offload}, but DeepSpeed offloads (optimizer, all) {offloads}"
        )
    whole, own = held(engine, stage)
    # A part is filled up to whole elements for each process; small ones may be kept whole.
    if own * plan.world_size > whole * 1.5 + 1e5:
        raise ConfigError(
            f"spec.distribution.strategy: {asked.strategy} over {plan.world_size}, but a process holds {own} of "
            f"{whole} {'weights' if stage == 3 else 'optimizer states'}"
        )


def _check_fsdp(wrapped: Any, plan: TrainPlan) -> None:
    from torch.distributed.fsdp import FSDPModule

    name = "spec.distribution.strategy: FSDP2"
    if not isinstance(wrapped, FSDPModule):
        raise ConfigError(f"{name}, but the model is a {type(wrapped).__name__}, not split by fully_shard")
    units = sum(isinstance(module, FSDPModule) for module in wrapped.modules())
    if units < 3:  # the whole, its ends, and the layers
        raise ConfigError(f"{name}, but the model is split in {units} unit(s), so its layers are gathered all at once")
    whole, own = held_by_fsdp(wrapped)
    if own * plan.world_size > whole * 1.5 + 1e5:
        raise ConfigError(f"{name} over {plan.world_size}, but a process holds {own} of {whole} weights")


def held_by_fsdp(model: torch.nn.Module) -> tuple[int, int]:
    """(all, this process's part) of the weights."""
    from torch.distributed.tensor import DTensor

    parameters = list(model.parameters())
    own = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in parameters)
    return sum(p.numel() for p in parameters), own


def held(engine: Any, stage: int) -> tuple[int, int]:
    """(all, this process's part) of what the stage splits: weights for 3, the optimizer's float32 weights else."""
    if stage == 3:
        parameters = list(engine.module.parameters())
        return sum(p.ds_numel for p in parameters), sum(p.ds_tensor.numel() for p in parameters)
    whole = sum(p.numel() for p in engine.module.parameters() if p.requires_grad)
    return whole, sum(part.numel() for part in engine.optimizer.single_partition_of_fp32_groups)


def whole_state(model: torch.nn.Module, trained_only: bool) -> dict[str, torch.Tensor]:
    """All weights of a model that ZeRO-3 or FSDP2 has split, gathered one by one into rank 0's memory; every process
    calls it. Empty on the others.
    """
    import torch

    state: dict[str, torch.Tensor] = {}
    first = torch.distributed.get_rank() == 0
    for name, parameter in model.named_parameters():
        if trained_only and not parameter.requires_grad:
            continue
        with _whole(parameter) as tensor:
            if first:
                state[name.replace(CHECKPOINTED, "")] = tensor.detach().to("cpu", copy=True)
    return state


@contextmanager
def _whole(parameter: Any) -> Iterator[torch.Tensor]:
    """A parameter in one piece, for as long as it is needed."""
    from torch.distributed.tensor import DTensor

    if isinstance(parameter, DTensor):
        yield parameter.full_tensor()
        return
    if not hasattr(parameter, "ds_id"):
        yield parameter
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter]):
        yield parameter
