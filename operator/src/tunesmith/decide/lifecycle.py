"""The end of a job and what comes after it: deadlines, deletion of its pods, deletion of itself."""

from __future__ import annotations

from datetime import datetime, timedelta

from tunesmith.api.finetunejob import FineTuneJob
from tunesmith.api.job import Failure, JobStatus
from tunesmith.api.mergejob import MergeJob
from tunesmith.decide.world import Decision, World


def terminal(status: JobStatus) -> bool:
    """Whether the job has ended. It never runs again, and its status is never written again."""
    return any(c.type == "Succeeded" and c.status != "Unknown" for c in status.conditions)


def has_aftermath(resource: FineTuneJob | MergeJob) -> bool:
    """Whether there is anything left to do for a job that has ended."""
    return resource.spec.clean_pod_policy == "All" or resource.spec.ttl_seconds_after_finished is not None


def tidy(world: World, resource: FineTuneJob | MergeJob) -> Decision | None:
    """What to delete of a job that has ended: its pods (with their Jobs), then the resource itself."""
    if not has_aftermath(resource):
        return None
    spec, status = resource.spec, resource.status
    jobs = [child for (kind, _), child in world.children.items() if kind == "Job" and world.owner.owns(child)]
    delete = jobs if spec.clean_pod_policy == "All" else []
    again = None
    if spec.ttl_seconds_after_finished is not None and status.completion_time:
        due = datetime.fromisoformat(status.completion_time) + timedelta(seconds=spec.ttl_seconds_after_finished)
        again = (due - world.now).total_seconds()
        if again <= 0:
            return Decision(status=status, delete=(world.resource,))
    return Decision(status=status, delete=tuple(delete), again=again)


def seconds_left(limit: int | None, start: str | None, now: datetime) -> int | None:
    """What is left of the deadline for the Job that is made now."""
    if limit is None:
        return None
    passed = (now - datetime.fromisoformat(start)).total_seconds() if start else 0
    return max(1, int(limit - passed))


def deadline_exceeded(limit: int) -> Failure:
    """The failure of a job whose time is over."""
    return Failure(
        reason="DeadlineExceeded",
        message=f"spec.activeDeadlineSeconds: {limit} s are over. Its newest checkpoint stays in the store",
    )
