"""Where the kinds of job differ: one table. All else of a job is the same chain for every kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tunesmith.api.finetunejob import FineTuneJob
from tunesmith.api.inferencejob import InferenceJob
from tunesmith.api.kinds import AnyJob
from tunesmith.api.mergejob import MergeJob
from tunesmith.children.job import inference_job, merge_job, train_job
from tunesmith.children.meta import Object
from tunesmith.decide import attempts, progress
from tunesmith.training.plan import AnyPlan, InferencePlan, MergePlan, TrainPlan
from tunesmith.training.planning import inference_plan, merge_plan, train_plan

Fields = Callable[..., dict[str, Any]]


@dataclass(frozen=True)
class Kind:
    """A kind of job."""

    model: type[AnyJob]
    plan_model: type[AnyPlan]
    plan: Callable[..., AnyPlan]
    """(job, spec, resolved references, default store) -> the plan of the first attempt. Raises PlanError."""
    again: Callable[..., AnyPlan]
    """(spec, plan of the attempt before, number, record) -> the plan of a later attempt. Raises PlanError."""
    job: Callable[..., Object]
    """(owner, attempt, spec, plan, settings, deadline) -> its Job."""
    reported: Fields
    """(report, plan, status, stamp) -> fields of the status while it runs; one that says nothing new is None."""
    made: Fields
    """(ending, status, stamp) -> fields of the status when it is done."""


KINDS = {
    "FineTuneJob": Kind(
        FineTuneJob, TrainPlan, train_plan, attempts.train_again, train_job, progress.training, progress.trained
    ),
    "MergeJob": Kind(
        MergeJob, MergePlan, merge_plan, attempts.merge_again, merge_job, progress.merging, progress.merged
    ),
    "InferenceJob": Kind(
        InferenceJob, InferencePlan, inference_plan, attempts.infer_again, inference_job, progress.inferring,
        progress.inferred,
    ),
}  # fmt: skip
