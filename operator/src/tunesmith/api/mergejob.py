"""MergeJob: adapters + base -> one whole model, checked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from tunesmith.api.base import (
    ATOMIC,
    AdapterSource,
    Model,
    ModelSource,
    Resources,
    rule,
    rules,
)
from tunesmith.api.dataset import Dataset
from tunesmith.api.job import JobSpec, JobStatus
from tunesmith.api.output import Output
from tunesmith.api.quantization import Quantization


class MergeAdapter(AdapterSource):
    """A PEFT LoRA adapter."""

    weight: Annotated[float, Field(ge=-10, le=10)] = 1.0
    """How much of its update is taken. 1: all of it; negative: it is taken away."""
    step: Annotated[int, Field(ge=1, le=8)] = 1
    """Steps are applied in order, for example an SFT adapter in step 1 and, in step 2, the DPO adapter that was trained
    from what step 1 makes. Adapters of one step are combined as `combine` says. The chat template is that of the last
    step's adapters, and so is the system prompt that an InferenceJob asks with."""


class Combine(Model):
    """How several adapters of one step become one update."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.density) == (self.method in ['TIES', 'DARELinear', 'DARETIES'])",
                "density must be set for TIES, DARELinear and DARETIES, and only for them",
            ),
            rule("!has(self.rank) || self.method == 'SVD'", "rank is only for SVD"),
        )
    )
    method: Literal["Cat", "Linear", "SVD", "TIES", "DARELinear", "DARETIES"] = "Cat"
    """Cat: the exact weighted sum of the updates. Linear: the factors are summed, which is cheaper and not the same;
    all adapters must have one rank. SVD: the sum, cut to `rank`. TIES (arXiv 2306.01708): small values are dropped, and
    of each the sign that weighs more is kept. DARELinear, DARETIES (arXiv 2311.03099): values are dropped at random
    first, and what is left is scaled up. All are PEFT's."""
    density: Annotated[float, Field(gt=0, le=1)] | None = None
    """Part of the values that is kept."""
    rank: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Rank of the combined update. Default: the largest of the adapters."""


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
    """The adapters, all applied."""
    combine: Combine = Combine()
    """How several adapters of one step are combined."""
    dtype: Literal["Auto", "BFloat16", "Float16", "Float32"] = "Auto"
    """Type of the merged weights. Auto: the base's own."""
    check: Check = Check()
    """The comparison that the result must pass."""
    quantization: Quantization | None = None
    """Make the merged model smaller. Default: it stays in `dtype`."""
    resources: Resources = Resources()
    """Of the merging pod."""
    output: Output = Output()
    """Where the merged model goes."""

    def all_datasets(self) -> list[tuple[str, Dataset]]:
        """(field, dataset) of those that are read."""
        calibration = self.quantization.calibration if self.quantization else None
        return [("spec.quantization.calibration.dataset", calibration.dataset)] if calibration else []


class MergeJobStatus(JobStatus):
    """What the operator and the merging pod report."""

    logit_error: float | None = None
    """The error that the check found."""
    quantization_error: float | None = None
    """The error of the quantised model's logits against the merged model's."""


class MergeJob(Model):
    """Merges adapters into their base and checks the result."""

    spec: MergeJobSpec
    """What is wanted."""
    status: MergeJobStatus = MergeJobStatus()
    """What was observed."""
