"""When a checkpoint is written, and when the training stops before its end. All processes decide the same."""

from __future__ import annotations

import math
import signal
import time
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from tunesmith.training.plan import CheckpointPlan

from tunesmith_trainer import group
from tunesmith_trainer.errors import LossDiverged


class Pace(TrainerCallback):
    """Asks after each step, by one all-reduce: was any process told to stop (SIGTERM)? Is a checkpoint due? Is the
    loss or the gradient of any process no number?
    """

    def __init__(self, plan: CheckpointPlan) -> None:
        self.plan = plan
        self.asked = False
        self.stopped = False
        self.saved = 0.0
        self.before: Any = None
        self.trainer: Any = None
        """Set once it is built."""

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Remember the wish."""
        print("SIGTERM: a checkpoint follows after this step")
        self.asked = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over the signal."""
        self.saved = time.monotonic()
        self.before = signal.signal(signal.SIGTERM, self.on_signal)

    def due(self, step: int) -> bool:
        """Whether it is time for a checkpoint. Of minutes, only rank 0's answer counts."""
        if self.plan.every_minutes is None:
            return step % (self.plan.every_steps or 500) == 0
        return group.is_first() and time.monotonic() - self.saved >= 60 * self.plan.every_minutes

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Decide."""
        loss, norm = self.trainer.step_loss, self.trainer.step_norm
        lost = not (math.isfinite(loss) and math.isfinite(norm))
        lost, asked, due = group.any_of([lost, self.asked, self.due(state.global_step)], args.device)
        if lost:
            raise LossDiverged(
                f"step {state.global_step}: the loss is {loss} and the norm of the gradient is {norm}; nothing of this "
                "step was saved. Lower spec.training.learningRate, raise warmupRatio, or set dtype Float32"
            )
        last = state.global_step >= state.max_steps
        if asked and not last:
            self.stopped = control.should_training_stop = True
        if asked or due or last:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A checkpoint was written. Who was told to stop meanwhile need not make another step."""
        self.saved = time.monotonic()
        if self.stopped or state.global_step >= state.max_steps:
            return
        [asked] = group.any_of([self.asked], args.device)
        if asked:
            self.stopped = control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the signal back."""
        signal.signal(signal.SIGTERM, self.before)
