"""Checkpoints: which to resume from, and one more when SIGTERM comes."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

INCOMPLETE = "checkpoint-is-incomplete.txt"
PARTS = ("trainer_state.json", "optimizer.pt", "scheduler.pt")


def step_of(checkpoint: Path) -> int:
    """The step at which a checkpoint was written; -1 for other folders."""
    number = checkpoint.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
    return int(number) if number.isdigit() else -1


def is_whole(checkpoint: Path) -> bool:
    """Whether all of a checkpoint was written. The Trainer writes trainer_state.json last."""
    if (checkpoint / INCOMPLETE).exists() or not all((checkpoint / part).is_file() for part in PARTS):
        return False
    try:
        state = json.loads((checkpoint / PARTS[0]).read_text())
    except ValueError:
        return False
    return bool(state.get("global_step") == step_of(checkpoint))


def newest(run: Path) -> Path | None:
    """The newest whole checkpoint of a run's folder."""
    found = sorted(run.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=step_of, reverse=True)
    return next((checkpoint for checkpoint in found if step_of(checkpoint) >= 0 and is_whole(checkpoint)), None)


def drop_broken(run: Path) -> None:
    """Delete checkpoints that were being written when a process ended: the Trainer would count them as kept ones."""
    for checkpoint in run.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if not is_whole(checkpoint):
            shutil.rmtree(checkpoint)


class StopOnSigterm(TrainerCallback):
    """While the training loop runs, SIGTERM to any process makes all of them checkpoint after the step at hand and
    stop. They agree by a one-number all-reduce after each step.
    """

    def __init__(self) -> None:
        self.asked = False
        self.stopped = False
        self.before: Any = None

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Remember the wish."""
        print("SIGTERM: a checkpoint follows after this step")
        self.asked = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over the signal."""
        self.before = signal.signal(signal.SIGTERM, self.on_signal)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop where any process was asked to."""
        asked = self.asked
        if args.world_size > 1:
            flag = torch.tensor([float(asked)], device=args.device)
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
            asked = bool(flag.item())
        if asked and state.global_step < state.max_steps:
            self.stopped = True
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the signal back."""
        signal.signal(signal.SIGTERM, self.before)


def is_first_process() -> bool:
    """Whether this is rank 0."""
    return os.environ.get("RANK", "0") == "0"
