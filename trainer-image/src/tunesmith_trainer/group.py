"""What the processes of a group tell each other. Alone, a process agrees with itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

Value = TypeVar("Value")

PATIENCE = timedelta(hours=3)
"""How long is waited for one process that reads or writes files for all. A step's collectives have less."""

_patient: distributed.ProcessGroup | None = None


def join(timeout: timedelta, backend: str, **options: Any) -> None:
    """Join the group of all processes, whose collectives end after `timeout`."""
    global _patient
    distributed.init_process_group(backend, timeout=timeout, **options)
    _patient = distributed.new_group(backend="gloo", timeout=PATIENCE)


def leave() -> None:
    """Leave the group, if there is one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def several() -> bool:
    """Whether there is a group of more than one."""
    return distributed.is_initialized() and distributed.get_world_size() > 1


def is_first() -> bool:
    """Whether this is rank 0."""
    return not several() or distributed.get_rank() == 0


def barrier() -> None:
    """Wait for all, also for one that is busy with files."""
    if several():
        distributed.barrier(_patient)


def any_of(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """For each flag, whether it is set anywhere."""
    if not several():
        return list(flags)
    tensor = torch.tensor([float(flag) for flag in flags], device=device)
    distributed.all_reduce(tensor, op=distributed.ReduceOp.MAX)
    return [bool(value) for value in tensor.tolist()]


def all_say(value: Value) -> list[Value]:
    """What each process says, by rank."""
    if not several():
        return [value]
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value, group=_patient)
    return found


def first_says(ask: Callable[[], Value]) -> Value:
    """What `ask` returns on rank 0, on all."""
    if not several():
        return ask()
    box: list[Any] = [ask() if is_first() else None]
    distributed.broadcast_object_list(box, src=0, group=_patient)
    answer: Value = box[0]
    return answer
