"""What the container of a job reports: the contract between the trainer and the operator.

Rank 0 serves `GET :9400/progress` (Progress as JSON) and `GET :9400/metrics` (Prometheus). Every container ends
with an Ending, as JSON of at most 4096 bytes, in its termination message.
"""

from __future__ import annotations

from typing import Literal

from tunesmith.api.base import Artifact, Model
from tunesmith.api.finetunejob import BestEvaluation
from tunesmith.training.architecture import ModelFacts
from tunesmith.training.capabilities import FULL_PRECISION

PORT = 9400
TERMINATION_LOG = "/dev/termination-log"
TERMINATION_BYTES = 4096

PLAN_FOLDER = "/etc/tunesmith"
PLAN_FILE = f"{PLAN_FOLDER}/plan.json"

FailureClass = Literal[
    "ConfigError",  # the plan asks for what cannot be done
    "DataError",  # a dataset is missing, empty, or has a bad row
    "ModelError",  # a model or adapter is missing or does not fit
    "CheckFailed",  # the merged model differs from base + adapter
    "LossDiverged",  # the loss is not a number
    "OutOfMemory",
    "DiskFull",
    "CollectiveTimeout",  # the processes waited for each other in vain
    "Interrupted",  # SIGTERM
    "PeerLost",  # another process of the group went away
    "Superseded",  # a later attempt has begun
    "Internal",
]


class Report(Model):
    """Progress, as rank 0 serves it. An InferenceJob's steps are the rows that are answered."""

    step: int = 0
    total_steps: int = 0
    waiting: str | None = None
    """What it waits for before it begins, for people."""
    resumed_step: int | None = None
    """Step of the checkpoint that it began from; 0: from the start."""
    checkpoint_step: int | None = None
    """Step of its newest whole checkpoint."""
    step_seconds: float | None = None
    """Usual (median) time of one step."""
    idle_seconds: float | None = None
    """Time since the last step ended, or since the training began; by the clock of the request."""
    loss: float | None = None
    learning_rate: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    """Model FLOPs utilisation (arXiv 2204.02311, appendix B), 0 to 1; None on CPU."""
    eta_seconds: int | None = None
    best: BestEvaluation | None = None
    peak_memory_bytes: int | None = None


class Ending(Model):
    """How a container ended."""

    reason: FailureClass | Literal["Completed"]
    message: str = ""
    rank: int = 0
    step: int | None = None
    """The last step that was made."""
    checkpoint_step: int | None = None
    """Step of the newest whole checkpoint."""
    artifact: Artifact | None = None
    best: BestEvaluation | None = None
    logit_error: float | None = None
    quantization_error: float | None = None
    metrics: dict[str, float] | None = None
    """Of an InferenceJob's answers."""
    log: list[str] = []

    def encode(self) -> bytes:
        """JSON that fits a termination message: the oldest log lines go first, then the message's tail."""
        lines, message = list(self.log), self.message
        while True:
            data = (
                self.model_copy(update={"log": lines, "message": message})
                .model_dump_json(by_alias=True, exclude_none=True)
                .encode()
            )
            if len(data) <= TERMINATION_BYTES:
                return data
            if lines:
                lines = lines[1:]
            else:
                message = message[: len(message) * 3 // 4]


class Inspection(Model):
    """What a look at the model found, in the termination message of the inspecting container."""

    facts: ModelFacts | None = None
    """The numbers of its architecture. Absent where they cannot be had without its weights."""
    reason: str = ""
    """Why they are not known."""
    base: str = FULL_PRECISION
    """How its weights are stored, by training/capabilities.py."""


def duration(seconds: float) -> str:
    """For people: 45s, 3m20s, 2h05m, 3d04h."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
