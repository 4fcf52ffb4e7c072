"""Evaluation during the training: when, which one was the best, and when nothing is won any more.

All follows from the evaluations so far, which a checkpoint's trainer_state.json holds: a run that goes on from a
checkpoint decides as the uninterrupted one does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from tunesmith.api.finetunejob import BestEvaluation
from tunesmith.training.plan import TrainPlan, ValidationPlan

from tunesmith_trainer import group
from tunesmith_trainer.checkpoint import PREFIX, verify
from tunesmith_trainer.errors import ConfigError

PREFIXED = "eval_"
SPEED = {"runtime", "samples_per_second", "steps_per_second", "num_tokens"}

Measured = tuple[int, dict[str, float]]
"""(step, metrics) of an evaluation."""


@dataclass(frozen=True)
class Best:
    """The best evaluation so far."""

    step: int
    value: float
    since: int
    """Evaluations after it."""


def measured(history: Sequence[dict[str, Any]]) -> list[Measured]:
    """The evaluations among a trainer's log lines."""
    found = []
    for line in history:
        if f"{PREFIXED}loss" in line:
            names = {name.removeprefix(PREFIXED): v for name, v in line.items() if name.startswith(PREFIXED)}
            found.append((int(line["step"]), {name: float(v) for name, v in names.items() if name not in SPEED}))
    return found


def shown(metrics: dict[str, float]) -> dict[str, float | None]:
    """Metrics for JSON, which has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def best_of(evaluations: Sequence[Measured], plan: ValidationPlan) -> Best | None:
    """The best of them; of equal ones, or of those better by less than early stopping counts, the first. What is no
    number is never the best. Raises ConfigError where the metric is not measured.
    """
    best: Best | None = None
    least = plan.early_stopping.min_delta if plan.early_stopping else 0.0
    for step, metrics in evaluations:
        if plan.metric not in metrics:
            raise ConfigError(
                f"spec.validation.metric: no {plan.metric!r} was measured: use one of {', '.join(sorted(metrics))}"
            )
        value = metrics[plan.metric]
        gain = math.inf if best is None else (value - best.value) * (1 if plan.maximize else -1)
        if math.isfinite(value) and gain > least:
            best = Best(step, value, 0)
        elif best:
            best = Best(best.step, best.value, best.since + 1)
    return best


def given_up(best: Best | None, plan: ValidationPlan) -> bool:
    """Whether early stopping ends the training."""
    return bool(best and plan.early_stopping and best.since >= plan.early_stopping.patience)


class Evaluation(TrainerCallback):
    """Asks for evaluations, keeps the best checkpoint, and stops early. All processes see the same numbers."""

    def __init__(self, plan: TrainPlan, tell: Callable[[BestEvaluation], None]) -> None:
        self.plan, self.tell = plan.validation, tell
        self.log = Path(plan.output.run) / "evaluation.jsonl"
        self.stopped = False
        self.trainer: Any = None
        """Set once it is built."""

    def best(self, state: Any) -> Best | None:
        """The best evaluation so far, by rank 0's numbers."""
        return group.first_says(lambda: best_of(measured(state.log_history), self.plan))

    def note(self, best: Best | None) -> None:
        """Its checkpoint stays, and the status says it."""
        if best:
            self.trainer.checkpoints.best = best.step
            self.tell(self.named(best))

    def named(self, best: Best) -> BestEvaluation:
        """It, for the status."""
        return BestEvaluation(step=best.step, metric=self.plan.metric, value=float(f"{best.value:.6g}"))

    def over(self, checkpoint: Path) -> bool:
        """Whether the run that wrote a checkpoint had stopped early with it: no step is to follow."""
        state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
        self.stopped = given_up(best_of(measured(state["log_history"]), self.plan), self.plan)
        return self.stopped

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluations of steps that come again after a resume are taken out of the log."""
        self.note(self.best(state))
        if state.is_world_process_zero:
            self.write(measured(state.log_history))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Whether to evaluate after this step."""
        every = self.plan.every_steps or self.trainer.order.steps
        if state.global_step % every == 0 or state.global_step >= state.max_steps:
            control.should_evaluate = True

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A new best one is kept as a checkpoint; too many that are no better end the training."""
        evaluations = measured(state.log_history)
        best = self.best(state)
        if state.is_world_process_zero:
            self.write(evaluations)
            step, metrics = evaluations[-1]
            print(f"evaluation at step {step}: {json.dumps(shown(metrics))}", flush=True)
        if best and best.step == state.global_step:
            self.note(best)
            control.should_save = True
        if given_up(best, self.plan) and state.global_step < state.max_steps:
            self.stopped = control.should_training_stop = control.should_save = True

    def write(self, evaluations: Sequence[Measured]) -> None:
        """One line for each evaluation."""
        lines = [json.dumps({"step": step, "metrics": shown(metrics)}) + "\n" for step, metrics in evaluations]
        self.log.write_text("".join(lines))

    def choose(self) -> tuple[str, int]:
        """Load what is to be published. Returns what is to be said of it, and its step."""
        trainer = self.trainer
        last = trainer.state.global_step
        said = (
            f"; stopped early, after {self.plan.early_stopping.patience} evaluations without a better one"
            if (self.stopped and self.plan.early_stopping)
            else ""
        )
        best = self.best(trainer.state)
        if best is None or self.plan.publish == "Last":
            return said, last
        named = f"step {best.step}, the best by {self.plan.metric} ({best.value:.6g})"
        if best.step == last:
            return f"{said}; {named}", last
        checkpoint = trainer.checkpoints.folder / f"{PREFIX}{best.step}"

        def unusable() -> str | None:
            try:
                manifest = verify(checkpoint)
            except ValueError as reason:
                return str(reason)
            if why := trainer.checkpoints.misfit(manifest):
                return str(why)
            if trainer.checkpoints.needs_conversion(checkpoint):
                return f"{manifest.world_size} processes wrote it"
            return None

        if why := group.first_says(unusable):
            return f"{said}; the last step is published: the checkpoint of {named}, cannot be used: {why}", last
        trainer.state.best_model_checkpoint = str(checkpoint)
        trainer._load_best_model()
        return f"{said}; published {named}", best.step
