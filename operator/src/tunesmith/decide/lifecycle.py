"""The end of a job and what comes after it: deadlines, pushing, deletion of its pods, deletion of itself."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from tunesmith.api.job import Failure, JobStatus
from tunesmith.api.kinds import AnyJob
from tunesmith.children.meta import ROLE_LABEL
from tunesmith.children.push import ROLE
from tunesmith.decide import pushing
from tunesmith.decide.world import Decision, World
from tunesmith.settings import Settings


def terminal(status: JobStatus) -> bool:
    """Whether the job has ended. It never runs again; of its status only what is said of pushing changes, and which
    spec it speaks of.
    """
    return any(c.type == "Succeeded" and c.status != "Unknown" for c in status.conditions)


def has_aftermath(resource: AnyJob) -> bool:
    """Whether there is anything left to do for a job that has ended."""
    spec = resource.spec
    return spec.clean_pod_policy == "All" or spec.ttl_seconds_after_finished is not None or pushing.is_open(resource)


def tidy(world: World, resource: AnyJob, settings: Settings) -> Decision | None:
    """What is left of a job that has ended: to say that a change of its spec since then is seen, to push what it made,
    and to delete its pods (with their Jobs), then the resource itself. What could not be pushed stays to be seen.
    """
    seen = resource.status.model_copy(update={"observed_generation": world.generation})
    if not has_aftermath(resource):
        return Decision(status=seen) if seen != resource.status else None
    resource = resource.model_copy(update={"status": seen})
    spec, push = resource.spec, pushing.advance(world, resource, settings)
    decision = Decision(status=push.status, create=push.create, events=push.events)
    if spec.clean_pod_policy == "All":
        owned = [child for (kind, _), child in world.children.items() if kind == "Job" and world.owner.owns(child)]
        over = [job for job in owned if job["metadata"]["labels"].get(ROLE_LABEL) != ROLE or job in push.done]
        decision = replace(decision, delete=tuple(over))
    ended = resource.status.completion_time
    if spec.ttl_seconds_after_finished is None or not ended or push.pending:
        return decision
    due = datetime.fromisoformat(ended) + timedelta(seconds=spec.ttl_seconds_after_finished)
    again = (due - world.now).total_seconds()
    return replace(decision, again=again) if again > 0 else replace(decision, delete=(world.resource,))


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
