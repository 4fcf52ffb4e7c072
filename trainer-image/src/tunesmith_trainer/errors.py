"""Failures that are told apart, each with an exit code. A message names the field or file, what was found, and
what to do.
"""

from __future__ import annotations

from typing import ClassVar

from tunesmith.training.report import FailureClass


class TrainerError(Exception):
    """A failure whose class is known."""

    reason: ClassVar[FailureClass] = "Internal"
    exit_code: ClassVar[int] = 70
    step: int | None = None
    """The last step that was made, where the training had begun."""
    checkpoint_step: int | None = None
    """Step of the newest whole checkpoint, then."""


class ConfigError(TrainerError):
    """The plan asks for what cannot be done."""

    reason = "ConfigError"
    exit_code = 64


class DataError(TrainerError):
    """A dataset is missing, empty, or has a bad row."""

    reason = "DataError"
    exit_code = 65


class ModelError(TrainerError):
    """A model or adapter is missing or does not fit."""

    reason = "ModelError"
    exit_code = 66


class CheckFailed(TrainerError):
    """The merged model differs from base + adapters."""

    reason = "CheckFailed"
    exit_code = 67


class OutOfMemory(TrainerError):
    """The machine's or the accelerator's memory did not suffice."""

    reason = "OutOfMemory"
    exit_code = 68


class PeerLost(TrainerError):
    """Another process of the group went away. Its own message tells why; if it has none, it was taken away."""

    reason = "PeerLost"
    exit_code = 69


class InternalError(TrainerError):
    """Anything else."""

    reason = "Internal"
    exit_code = 70


class LossDiverged(TrainerError):
    """The loss, or its gradient, is not a number: nothing good can follow."""

    reason = "LossDiverged"
    exit_code = 71


class DiskFull(TrainerError):
    """A file system is full, or a quota is used up."""

    reason = "DiskFull"
    exit_code = 72


class CollectiveTimeout(TrainerError):
    """The processes waited for each other in vain: one hangs, or cannot be reached."""

    reason = "CollectiveTimeout"
    exit_code = 73


class Superseded(TrainerError):
    """A later attempt of the job has begun."""

    reason = "Superseded"
    exit_code = 74


class Interrupted(TrainerError):
    """SIGTERM."""

    reason = "Interrupted"
    exit_code = 143


BY_REASON: dict[str, type[TrainerError]] = {kind.reason: kind for kind in TrainerError.__subclasses__()}
"""The class of a failure by its name, as endings have it."""
