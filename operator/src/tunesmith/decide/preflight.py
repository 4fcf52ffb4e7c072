"""Before the first attempt: what the inspection of the model found, and whether the job fits its devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tunesmith.api.finetunejob import FineTuneJob, FineTuneJobSpec
from tunesmith.api.job import Failure
from tunesmith.api.quantity import amount
from tunesmith.children.inspect import ROLE
from tunesmith.children.meta import ROLE_LABEL, Object
from tunesmith.decide import pods as pod_facts
from tunesmith.decide.endings import Action, action
from tunesmith.decide.jobstate import job_condition
from tunesmith.training.matrix import GPUS, refuse
from tunesmith.training.memory import Choice, choose
from tunesmith.training.plan import TrainPlan
from tunesmith.training.report import Inspection


@dataclass(frozen=True)
class Outcome:
    """What became of the inspection."""

    pending: str | None = None
    """Why it is not over yet, for people."""
    failure: Failure | None = None
    """What is wrong with the model or the data."""
    inspection: Inspection | None = None
    """What it found. Absent where it could not be carried out: then nothing is known of the memory."""


def outcome(job: Object, pods: Sequence[Object]) -> Outcome:
    """What the Job of the inspection and its pods say."""
    own = [pod for pod in pods if pod["metadata"]["labels"].get(ROLE_LABEL) == ROLE]
    if job_condition(job, "Complete"):
        return Outcome(inspection=pod_facts.said(Inspection, own))
    if job_condition(job, "Failed"):
        failure = pod_facts.failure(own)
        if failure and action(failure.reason) is Action.FAIL:
            return Outcome(failure=failure)
        return Outcome()
    return Outcome(pending=pod_facts.problem(own) or "the model's configuration is looked at")


def needs_gpu_memory(resource: FineTuneJob) -> bool:
    """Whether the nodes' labels must be asked how large their GPUs are."""
    wanted = resource.spec.memory
    before = not resource.status.attempts
    return before and wanted.check != "Disabled" and wanted.per_device is None and _has_gpus(resource.spec)


def choice(spec: FineTuneJobSpec, plan: TrainPlan, inspection: Inspection, gpu_memory: int | None) -> Choice | None:
    """The distribution and the estimate. None: too little is known of the model. Raises PlanError, also for what does
    not go with the model's base.
    """
    refuse(spec, base=inspection.base)
    if inspection.facts is None:
        return None
    wanted, device = spec.distribution, per_device(spec, plan, gpu_memory)
    return choose(plan, inspection.facts, wanted.strategy, wanted.offload, device, cpu=not _has_gpus(spec))


def per_device(spec: FineTuneJobSpec, plan: TrainPlan, gpu_memory: int | None) -> int | None:
    """Bytes of one device: as the spec says, else of the GPU by its node's label, else the process's share of the
    pod's memory limit.
    """
    if spec.memory.per_device is not None:
        return int(amount(spec.memory.per_device))
    if _has_gpus(spec):
        return gpu_memory
    limit = (spec.resources.limits or {}).get("memory")
    return None if limit is None else int(amount(limit)) // plan.processes_per_node


def _has_gpus(spec: FineTuneJobSpec) -> bool:
    return any(name in (spec.resources.limits or {}) for name in GPUS)
