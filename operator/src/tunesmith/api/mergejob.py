"""MergeJob: adapters + base -> one whole model, checked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from tunesmith.api.base import (
    ATOMIC,
    Model,
    ModelSource,
    Output,
    Resources,
    Source,
    rule,
    rules,
)
from tunesmith.api.job import JobSpec, JobStatus


class MergeAdapter(Source):
    """A PEFT LoRA adapter."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "[has(self.uri), has(self.fineTuneJobRef)].filter(x, x).size() == 1 && !has(self.mergeJobRef)",
                "exactly one of uri and fineTuneJobRef must be set",
            )
        )
    )


class Check(Model):
    """The comparison of the merged model with the base that has the adapters applied."""

    tolerance: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Largest allowed error of the logits: the norm of their difference over the norm of the base's logits with
    adapters, in float32 on the rows of a fixed prompt set. A larger one fails the job."""


class MergeJobSpec(JobSpec):
    """Which adapters to merge into which model."""

    model: ModelSource
    """The base that the adapters were trained from."""
    adapters: Annotated[list[MergeAdapter], Field(min_length=1, max_length=8, json_schema_extra=ATOMIC)]
    """The adapters, all applied together."""
    dtype: Literal["Auto", "BFloat16", "Float16", "Float32"] = "Auto"
    """Type of the merged weights. Auto: the base's own."""
    check: Check = Check()
    """The comparison that the result must pass."""
    resources: Resources = Resources()
    """Of the merging pod."""
    output: Output = Output()
    """Where the merged model goes."""


class MergeJobStatus(JobStatus):
    """What the operator and the merging pod report."""

    logit_error: float | None = None
    """The error that the check found."""


class MergeJob(Model):
    """Merges adapters into their base and checks the result."""

    spec: MergeJobSpec
    """What is wanted."""
    status: MergeJobStatus = MergeJobStatus()
    """What was observed."""
