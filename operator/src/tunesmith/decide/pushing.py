"""Pushing what a job has made: after its end, by a Job for each destination, beside all that uses the artefact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tunesmith.api.job import Failure, JobStatus
from tunesmith.api.kinds import AnyJob
from tunesmith.api.output import Destination, Pushed
from tunesmith.children.meta import Object, Owner
from tunesmith.children.push import push_job, push_name
from tunesmith.decide import pods as pod_facts
from tunesmith.decide.endings import Action, action
from tunesmith.decide.jobstate import job_condition
from tunesmith.decide.references import succeeded_with
from tunesmith.decide.world import Event, World, condition, foreign, with_condition
from tunesmith.settings import Settings

CONDITION = "Pushed"
JOB_LABEL = "batch.kubernetes.io/job-name"


@dataclass(frozen=True)
class Outcome:
    """What has become of one destination."""

    pushed: Pushed | None = None
    failure: Failure | None = None
    """Why it is not tried again."""
    pending: str = ""
    """What it waits for, for people."""


@dataclass(frozen=True)
class Pushing:
    """What to do about all of them."""

    status: JobStatus
    create: tuple[Object, ...] = ()
    done: tuple[Object, ...] = ()
    """Jobs whose outcome is in the status."""
    pending: bool = False
    events: tuple[Event, ...] = ()


def destinations(resource: AnyJob) -> list[Destination]:
    """Where the artefact is to go, once there is one."""
    status = resource.status
    made = status.artifact is not None and succeeded_with(status, status.artifact.kind)
    return resource.spec.output.push if made else []


def job_names(resource: AnyJob, owner: Owner) -> list[str]:
    """Names of the Jobs that push."""
    return [push_name(owner, one.uri) for one in destinations(resource)]


def is_open(resource: AnyJob) -> bool:
    """Whether anything is left to be pushed, or to be said of it."""
    there = {one.uri for one in resource.status.pushed}
    wanted = {one.uri for one in destinations(resource)}
    said = next((c for c in resource.status.conditions if c.type == CONDITION), None)
    return bool(wanted - there) or bool(said and said.status != "True")


def advance(world: World, resource: AnyJob, settings: Settings) -> Pushing:
    """One step further for each destination."""
    owner, status, artifact = world.owner, resource.status, resource.status.artifact
    there = {one.uri: one for one in status.pushed}
    create, done, events = list[Object](), list[Object](), list[Event]()
    outcomes = dict[str, Outcome]()
    for one in destinations(resource):
        name = push_name(owner, one.uri)
        job = world.children.get(("Job", name))
        if one.uri in there:
            outcomes[one.uri] = Outcome(pushed=there[one.uri])
            done += [job] if job is not None and owner.owns(job) else []
        elif message := foreign(world, [("Job", name)]):
            outcomes[one.uri] = Outcome(pending=message)
        elif job is None and artifact is not None:
            create.append(push_job(owner, one, artifact, resource.spec, settings))
            outcomes[one.uri] = Outcome(pending="its pod starts")
        elif job is not None and artifact is not None:
            pods = [pod for pod in world.pods if pod["metadata"]["labels"].get(JOB_LABEL) == name]
            known = Pushed(uri=one.uri, digest=artifact.digest, time=world.stamp)
            outcomes[one.uri] = outcome(job, pods, known)
    pushed = [one.pushed for one in outcomes.values() if one.pushed]
    events += [Event("Normal", "Pushed", said(one)) for one in pushed if one.uri not in there]
    verdict, reason, message = summary(outcomes, {uri: push_name(owner, uri) for uri in outcomes})
    before = next((c for c in status.conditions if c.type == CONDITION), None)
    if verdict == "False" and (before is None or before.message != message):
        events.append(Event("Warning", reason, message))
    conditions = [c for c in status.conditions if c.type != CONDITION]
    if outcomes:
        conditions = with_condition(
            status.conditions, condition(world, status.conditions, CONDITION, verdict, reason, message)
        )
    return Pushing(
        status=status.model_copy(update={"pushed": pushed, "conditions": conditions}),
        create=tuple(create),
        done=tuple(done),
        pending=any(one.pending for one in outcomes.values()),
        events=tuple(events),
    )


def outcome(job: Object, pods: Sequence[Object], known: Pushed) -> Outcome:
    """What a Job and its pods say. `known` is what is to be said where the pods are gone."""
    if job_condition(job, "Complete"):
        return Outcome(pushed=pod_facts.said(Pushed, pods) or known)
    failure = pod_facts.failure(pods[-1:])
    if job_condition(job, "Failed"):
        gone = Failure(reason="Internal", message=f"{known.uri}: its pods are gone, and left no word")
        return Outcome(failure=failure or gone)
    if failure:
        return Outcome(pending=f"{failure.message}. It is tried again")
    return Outcome(pending=pod_facts.problem(pods) or "it is on its way")


def summary(outcomes: dict[str, Outcome], jobs: dict[str, str]) -> tuple[Literal["True", "False", "Unknown"], str, str]:
    """Status, reason and message of the condition: what failed first, then what is on its way."""
    failed = {uri: one.failure for uri, one in outcomes.items() if one.failure}
    if failed:
        refused = all(action(failure.reason) is Action.FAIL for failure in failed.values())
        told = [f"{one.message}. Then delete Job {jobs[uri]}, and it is pushed again" for uri, one in failed.items()]
        return "False", "PushRefused" if refused else "PushFailed", "; ".join(told)
    waiting = [f"{uri}: {one.pending.removeprefix(f'{uri}: ')}" for uri, one in outcomes.items() if one.pending]
    if waiting:
        return "Unknown", "Pushing", "; ".join(waiting)
    return "True", "Pushed", "; ".join(said(one.pushed) for one in outcomes.values() if one.pushed)


def said(pushed: Pushed) -> str:
    """For people."""
    return f"{pushed.uri} ({pushed.revision})" if pushed.revision else pushed.uri
