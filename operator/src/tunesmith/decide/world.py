"""What was observed of one resource, and what is decided of it. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from tunesmith.api.base import Condition
from tunesmith.api.job import JobStatus
from tunesmith.api.modeldeployment import ModelDeploymentStatus
from tunesmith.children.meta import Object, Owner
from tunesmith.serving.contract import AgentStatus, State
from tunesmith.serving.routes import GatewayStatus, Routes
from tunesmith.training.report import Report

Ref = tuple[str, str]
"""(kind, name)"""
Status = JobStatus | ModelDeploymentStatus


@dataclass(frozen=True)
class World:
    """All that a decision may know."""

    resource: Object
    """The custom resource, as the API server has it."""
    now: datetime
    children: Mapping[Ref, Object] = field(default_factory=dict)
    """Live objects under the names that our children have, also those that are not ours."""
    pods: tuple[Object, ...] = ()
    gateway_pods: tuple[Object, ...] = ()
    """Of a ModelDeployment's gateway; they are not among `pods`."""
    references: Mapping[Ref, Object | None] = field(default_factory=dict)
    """Custom resources that the spec refers to; None: not there."""
    selected: tuple[Object, ...] = ()
    """FineTuneJobs that the spec selects by their labels."""
    missing: tuple[str, ...] = ()
    """Claims, Secrets and ConfigMaps that the spec names and that are not there, each with its field."""
    store_exists: bool = False
    """Whether the claim of the default store is there."""
    report: Report | None = None
    """What rank 0 says of its progress."""
    refusals: tuple[str, ...] = ()
    """Why the Job controller could not make pods of the newest attempt: a quota, an admission webhook."""
    lost_nodes: frozenset[str] = frozenset()
    """Nodes of pods that are on their way out, which do not answer any more."""
    gpu_memory: int | None = None
    """Bytes of the smallest GPU of the nodes that the pods may run on, as far as the nodes' labels tell."""
    workload: Object | None = None
    """Kueue's Workload of the newest attempt."""
    agents: Mapping[str, AgentStatus] = field(default_factory=dict)
    """By pod name: what the agent says."""
    gateways: Mapping[str, GatewayStatus] = field(default_factory=dict)
    """By pod name: what the gateway says."""
    token: str = ""
    """A fresh random token, for a Secret that is yet to be made."""

    @property
    def owner(self) -> Owner:
        """The resource, as owner of its children."""
        return Owner.of(self.resource)

    @property
    def generation(self) -> int:
        """Of the spec."""
        return int(self.resource["metadata"]["generation"])

    @property
    def stamp(self) -> str:
        """`now` as the API server writes it."""
        return timestamp(self.now)


@dataclass(frozen=True)
class Event:
    """A Kubernetes Event to post."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True)
class Decision:
    """What to do, in order: create, apply, delete, kill, push, then write the status, then post events."""

    status: Status
    create: tuple[Object, ...] = ()
    """Made if absent, never changed after."""
    apply: tuple[Object, ...] = ()
    """Made or changed by server-side apply."""
    delete: tuple[Object, ...] = ()
    kill: tuple[Object, ...] = ()
    """Pods on nodes that are lost: their removal is not waited for."""
    push: tuple[tuple[str, State | Routes], ...] = ()
    """(pod's IP, what it is to know) for agents and gateways that have not seen the newest."""
    again: float | None = None
    """Look again after this many seconds, though nothing happened."""
    events: tuple[Event, ...] = ()


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def condition(
    world: World,
    old: list[Condition],
    type_: str,
    status: Literal["True", "False", "Unknown"],
    reason: str,
    message: str,
) -> Condition:
    """A condition whose transition time moves only when its status does."""
    previous = next((c for c in old if c.type == type_), None)
    same = previous is not None and previous.status == status
    return Condition(
        type=type_,
        status=status,
        reason=reason,
        message=message[:8192],
        last_transition_time=previous.last_transition_time if same and previous else world.stamp,
        observed_generation=world.generation,
    )


def with_condition(conditions: list[Condition], new: Condition) -> list[Condition]:
    """The conditions with `new` in the place of the one of its type."""
    if any(one.type == new.type for one in conditions):
        return [new if one.type == new.type else one for one in conditions]
    return [*conditions, new]


def foreign(world: World, names: list[Ref]) -> str | None:
    """A message about the first object that has the name of a child of ours but another owner."""
    for kind, name in names:
        live = world.children.get((kind, name))
        if live is not None and not world.owner.owns(live):
            return (
                f"{kind} {name} exists and does not belong to this {world.owner.kind}: "
                f"delete or rename it, or give this {world.owner.kind} another name"
            )
    return None


def deleting(resource: Mapping[str, Any]) -> bool:
    """Whether the resource is being deleted; its children follow it by their owner references."""
    return "deletionTimestamp" in resource["metadata"]


def held(world: World, status: Status, reason: str, message: str) -> Status:
    """The status of a resource that something outside of it holds up; all else in it stays."""
    if isinstance(status, JobStatus):
        # What has ended stays so: all that is made of it then is what pushes its artefact.
        over = any(one.type == "Succeeded" and one.status != "Unknown" for one in status.conditions)
        mine = condition(world, status.conditions, "Pushed" if over else "Succeeded", "Unknown", reason, message)
    else:
        mine = condition(world, status.conditions, "Ready", "False", reason, message)
    conditions = with_condition(status.conditions, mine)
    return status.model_copy(update={"conditions": conditions, "observed_generation": world.generation})
