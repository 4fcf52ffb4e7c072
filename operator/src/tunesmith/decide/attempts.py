"""The attempts of a job: which one is current, what becomes of one that ended, and what the next one is like.

The record in the status decides, the objects only follow it: an attempt is open until its end is written, and the
next one is made only after that. Thus the operator may be killed between any two writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from tunesmith.api.finetunejob import FineTuneJobSpec
from tunesmith.api.inferencejob import InferenceJobSpec
from tunesmith.api.job import Attempt, JobSpec, JobStatus
from tunesmith.decide.endings import Action, action
from tunesmith.training.matrix import min_rows
from tunesmith.training.plan import InferencePlan, MergePlan, TrainPlan
from tunesmith.training.planning import for_attempt, nodes_that_divide

KEPT = 10
MAX_BACKOFF_SECONDS = 600
# Attempts that were taken away one after the other before any of them made a step.
MAX_IDLE_INTERRUPTIONS = KEPT
MAX_SMALLER = 2


@dataclass(frozen=True)
class Verdict:
    """What follows a closed attempt: the next one after `wait_seconds`, or the failure of the job."""

    fail: str | None = None
    """Why there is no next attempt."""
    counted: bool = False
    wait_seconds: float = 0


def current(status: JobStatus) -> Attempt | None:
    """The attempt that is open, if there is one."""
    last = status.attempts[-1] if status.attempts else None
    return last if last and last.end_time is None else None


def number(status: JobStatus) -> int:
    """Number of the open attempt, or else of the next one."""
    if open_ := current(status):
        return open_.number
    return status.attempts[-1].number + 1 if status.attempts else 1


def record(attempts: Sequence[Attempt], attempt: Attempt) -> list[Attempt]:
    """The record with `attempt` in its place, the newest ten."""
    others = [one for one in attempts if one.number != attempt.number]
    return sorted([*others, attempt], key=lambda one: one.number)[-KEPT:]


def verdict(spec: JobSpec, status: JobStatus, reason: str) -> Verdict:
    """What follows the attempt at the end of the record, which ended for `reason`."""
    policy = spec.restart_policy
    match action(reason):
        case Action.FAIL:
            return Verdict(fail="")
        case Action.RETRY:
            done = status.restarts or 0
            if done >= policy.max_restarts:
                return Verdict(fail=f"restartPolicy.maxRestarts: {policy.max_restarts} used up")
            return Verdict(counted=True, wait_seconds=_backoff(policy.backoff_seconds, done))
        case Action.RETRY_SMALLER:
            halved = sum(one.reason == reason for one in status.attempts) - 1
            size = status.attempts[-1].micro_batch_size
            if size is None:
                return Verdict(fail="")
            field = "batchSize" if isinstance(spec, InferenceJobSpec) else "training.microBatchSize"
            if size <= least(spec):
                return Verdict(fail=f"{field} is {size} already")
            if halved >= MAX_SMALLER:
                return Verdict(fail=f"{field} was halved {MAX_SMALLER} times")
            return Verdict()
        case _:
            idle = _idle(status.attempts)
            if idle >= MAX_IDLE_INTERRUPTIONS:
                return Verdict(fail=f"{idle} attempts were taken away before they made a step")
            wait = _backoff(policy.backoff_seconds, idle - 2) if idle > 1 else 0
            return Verdict(wait_seconds=wait)


def due(closed: Attempt, wait_seconds: float) -> datetime:
    """When the attempt after `closed` may begin."""
    return datetime.fromisoformat(closed.end_time or "") + timedelta(seconds=wait_seconds)


def next_size(spec: FineTuneJobSpec, plan: TrainPlan, attempts: Sequence[Attempt]) -> tuple[int, int]:
    """(nodes, micro-batch size) of the next attempt, of a job whose last attempt had `plan`."""
    last = attempts[-1] if attempts else None
    nodes, micro = spec.nodes, plan.training.micro_batch_size
    if last and last.reason == "TooFewNodes" and spec.elastic and last.scheduled_nodes:
        nodes = nodes_that_divide(plan, last.scheduled_nodes, spec.elastic.min_nodes) or nodes
    if last and last.reason == "OutOfMemory" and micro > least(spec):
        batch, half = plan.training.global_batch_size, micro // 2
        groups = nodes * plan.processes_per_node // plan.distribution.sharing
        micro = next((m for m in range(half, least(spec) - 1, -1) if batch % (groups * m) == 0), micro)
    return nodes, micro


def train_again(spec: FineTuneJobSpec, before: TrainPlan, number: int, attempts: Sequence[Attempt]) -> TrainPlan:
    """The plan of a FineTuneJob's next attempt. Raises PlanError."""
    nodes, micro = next_size(spec, before, attempts)
    return for_attempt(before, number, nodes, micro)


def merge_again(spec: object, before: MergePlan, number: int, attempts: Sequence[Attempt]) -> MergePlan:
    """The plan of a MergeJob's next attempt: it begins anew."""
    return before


def infer_again(spec: object, before: InferencePlan, number: int, attempts: Sequence[Attempt]) -> InferencePlan:
    """The plan of an InferenceJob's next attempt: fewer rows at once where the memory did not suffice."""
    half = attempts[-1].reason == "OutOfMemory"
    size = max(1, before.batch_size // 2) if half else before.batch_size
    return before.model_copy(update={"attempt": number, "batch_size": size})


def redone(before: Sequence[Attempt], after: Sequence[Attempt]) -> int:
    """Steps that turn out to be made again: the newest attempt has just said from where it goes on."""
    if len(after) < 2 or after[-1].resumed_step is None:
        return 0
    if before and before[-1].number == after[-1].number and before[-1].resumed_step is not None:
        return 0  # counted when it was first said
    return max(0, (after[-2].last_step or 0) - after[-1].resumed_step)


def least(spec: JobSpec) -> int:
    """The smallest micro-batch that the method can do with."""
    return min_rows(spec) if isinstance(spec, FineTuneJobSpec) else 1


def _backoff(first: int, times: int) -> float:
    return float(min(MAX_BACKOFF_SECONDS, first * 2**times))


def _idle(attempts: Sequence[Attempt]) -> int:
    """How many attempts at the end of the record were taken away before they made a step."""
    count = 0
    for one in reversed(attempts):
        made = (one.last_step or 0) > (one.resumed_step or 0)
        if made or one.reason in {"Suspended", "TooFewNodes"} or action(one.reason or "") is not Action.RETRY_FREE:
            break
        count += 1
    return count
