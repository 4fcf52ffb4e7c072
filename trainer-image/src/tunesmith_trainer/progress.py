"""How far the training is: lines in logging.jsonl, on stdout, and live over HTTP."""

from __future__ import annotations

import json
import math
import resource
import statistics
import time
from collections import deque
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from tunesmith.training.logline import LogLine
from tunesmith.training.report import Report

from tunesmith_trainer.server import Server

MOST_REPEATED = 1000
"""Lines of earlier attempts that are printed again."""
# What is logged under names of its own; anything else is a metric of the method.
OWN = {"loss", "grad_norm", "learning_rate", "epoch", "num_tokens", "step_time", "total_flos"}


def metrics(logs: dict[str, Any]) -> dict[str, float]:
    """The method's metrics among what a trainer logs, as far as they are numbers."""
    numbers = {name: float(value) for name, value in logs.items() if name not in OWN and isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def _printed(line: dict[str, Any]) -> str:
    """A line of logging.jsonl for the trainer's log."""
    return LogLine.model_validate({name: value for name, value in line.items() if value is not None}).text()


def peak_memory() -> int:
    """Bytes that this process held at most: on its GPU where it has one, else resident in memory (getrusage(2))."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Reporter(TrainerCallback):
    """Follows the training on every process; rank 0 writes and serves."""

    def __init__(self, log: Path, port: int, most_tokens: float | None = None) -> None:
        self.log, self.port, self.most_tokens = log, port, most_tokens
        self.server: Server | None = None
        self.report = Report(step=0, total_steps=0)
        self.began = self.window = self.ended = self.mark = 0.0
        self.times: deque[float] = deque(maxlen=101)
        self.first_step = 0
        self.tokens = 0.0
        self.trainer: Any = None
        """Set once it is built."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start to serve. Lines of steps that come again after a resume are taken out of the log."""
        self.began = self.window = self.ended = self.mark = time.monotonic()
        self.first_step = state.global_step
        self.report = Report(
            step=state.global_step,
            total_steps=state.max_steps,
            resumed_step=state.global_step,
            checkpoint_step=self.trainer.checkpoint_step,
        )
        if not state.is_world_process_zero:
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        old = self.log.read_text().splitlines() if self.log.exists() else []
        kept = [line for line in old if line.endswith("}") and json.loads(line)["step"] <= state.global_step]
        self.log.write_text("".join(f"{line}\n" for line in kept))
        # The pod that printed them is gone after a suspension; whoever follows the logs has the whole curve from here.
        for line in kept[:: 1 + len(kept) // MOST_REPEATED]:
            print(_printed(json.loads(line)))
        try:
            self.server = Server(self.port, self.current)
        except OSError as error:
            print(f"progress is not served: port {self.port}: {error.strerror}")

    def update(self, **values: Any) -> None:
        """Publish new values."""
        self.report = self.report.model_copy(update={**values, "peak_memory_bytes": peak_memory()})

    def current(self) -> Report:
        """The report at this moment. Called by the server's threads, also while a step hangs."""
        return self.report.model_copy(update={"idle_seconds": round(time.monotonic() - self.ended, 2)})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """One step further. The last step is always logged."""
        now = time.monotonic()
        self.times.append(now - self.mark)
        self.ended = self.mark = now
        speed = (now - self.began) / max(1, state.global_step - self.first_step)
        self.update(
            step=state.global_step,
            step_seconds=round(statistics.median(self.times), 4),
            eta_seconds=round(speed * (state.max_steps - state.global_step)),
        )
        if state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """One log line."""
        logs: dict[str, float] = kwargs["logs"]
        if "loss" not in logs:
            return
        now = time.monotonic()
        tokens = logs.get("num_tokens", self.tokens)
        speed = (tokens - self.tokens) / (now - self.window)
        self.tokens, self.window = tokens, now
        self.update(
            loss=logs["loss"],
            learning_rate=logs["learning_rate"],
            tokens_per_second=round(speed, 1),
            mfu=round(speed / self.most_tokens, 4) if self.most_tokens else None,
        )
        if not state.is_world_process_zero:
            return
        norm = float(logs.get("grad_norm", math.nan))
        line = {
            "step": state.global_step,
            "total_steps": state.max_steps,
            "epoch": logs.get("epoch", state.epoch),
            "loss": logs["loss"],
            "grad_norm": norm if math.isfinite(norm) else None,
            "learning_rate": logs["learning_rate"],
            "tokens_per_second": self.report.tokens_per_second,
            "mfu": self.report.mfu,
            "peak_memory_bytes": self.report.peak_memory_bytes,
            "elapsed_seconds": round(now - self.began, 2),
            "eta_seconds": self.report.eta_seconds,
            "metrics": metrics(logs),
        }
        with self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(_printed(line), flush=True)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """An evaluation goes on: that is no standstill."""
        self.ended = time.monotonic()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """An evaluation is over. Its time is no step's."""
        self.ended = self.mark = time.monotonic()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """A checkpoint is whole. Its time is no step's."""
        self.mark = time.monotonic()
        self.update(checkpoint_step=state.global_step)

    def close(self) -> None:
        """Stop serving."""
        if self.server:
            self.server.close()
            self.server = None
