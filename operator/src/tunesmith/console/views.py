"""Resources, pods and events as the pages show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tunesmith.children.meta import ATTEMPT_LABEL
from tunesmith.client import Unreadable
from tunesmith.client.logs import begun
from tunesmith.client.resources import RESOURCES, AnyResource, FineTuneJob, InferenceJob, MergeJob, ModelDeployment
from tunesmith.decide import reasons
from tunesmith.decide.pods import problem
from tunesmith.decide.pods import rank as rank_of

Object = dict[str, Any]
LEFT_OUT = ("managedFields",)


def line(kind: str, body: Mapping[str, Any]) -> Object:
    """A line of a list. Of what this version cannot read it has the name and why; its state is `unknown`."""
    try:
        return summary(RESOURCES[kind].stored(body))
    except Unreadable as error:
        meta = body["metadata"]
        return {
            "kind": kind,
            "name": meta["name"],
            "namespace": meta["namespace"],
            "created": meta["creationTimestamp"],
            "model": "",
            "reason": "Unreadable",
            "message": error.message,
            "state": "unknown",
        }


def summary(one: AnyResource) -> Object:
    """A line of a resource that this version knows."""
    found: Object = {
        "kind": one.kind,
        "name": one.name,
        "namespace": one.metadata.namespace,
        "created": one.metadata.creation_timestamp,
        "model": _source(one.spec.model.body()),
        "reason": one.reason,
        "message": one.message,
        "state": state(one),
    }
    match one:
        case FineTuneJob():
            progress = one.status.progress.body() if one.status.progress else None
            shape = {"method": one.spec.method.type, "tuner": one.spec.tuner.type, "nodes": one.spec.nodes}
            found |= {**shape, "progress": progress, "suspended": one.spec.suspend}
        case MergeJob():
            found |= {"suspended": one.spec.suspend, "adapters": len(one.spec.adapters)}
        case InferenceJob():
            found |= {"suspended": one.spec.suspend, "progress": None, "metrics": one.status.metrics or {}}
            if rows := one.status.progress:
                found["progress"] = {**rows.body(), "step": rows.rows, "totalSteps": rows.total_rows}
        case ModelDeployment():
            told = {adapter.name: adapter.body() for adapter in one.status.adapters}
            found |= {
                "modelName": one.spec.model_name,
                "pods": {"ready": one.status.ready_replicas or 0, "wanted": one.spec.replicas},
                "adapters": [told.get(own.name, {"name": own.name}) for own in one.spec.adapters],
            }
    return found


def state(one: AnyResource) -> str:
    """One of done, failed, paused, running and waiting: for colours, and for filters."""
    if one.done or one.failed:
        return "done" if one.done else "failed"
    if one.reason == "Suspended" or (not isinstance(one, ModelDeployment) and one.spec.suspend):
        return "paused"
    return "running" if one.reason in {"Running", "Degraded", "Updating"} else "waiting"


def _source(source: Mapping[str, Any]) -> str:
    """An address, or kind/name of what makes the model."""
    makers = {key.removesuffix("Ref").lower(): value for key, value in source.items() if key.endswith("JobRef")}
    return source.get("uri") or next((f"{kind}/{made['name']}" for kind, made in makers.items()), "")


def resource(body: Mapping[str, Any]) -> Object:
    """A resource without what only tools read."""
    meta = {key: value for key, value in body["metadata"].items() if key not in LEFT_OUT}
    return {**body, "metadata": meta}


def explained(reason: str) -> Object | None:
    """What a reason means, and what to do."""
    meaning = reasons.meaning(reason)
    return {"meaning": meaning, "todo": reasons.todo(reason), "follows": reasons.follows(reason)} if meaning else None


def pod(body: Mapping[str, Any]) -> Object:
    """One pod."""
    meta, status = body["metadata"], body.get("status", {})
    containers = status.get("containerStatuses", ())
    return {
        "name": meta["name"],
        "attempt": int(meta.get("labels", {}).get(ATTEMPT_LABEL, 1)),
        "rank": rank_of(body) or 0,
        "phase": "Terminating" if meta.get("deletionTimestamp") else status.get("phase", "Pending"),
        "ready": bool(containers) and all(one.get("ready") for one in containers),
        "restarts": sum(one.get("restartCount", 0) for one in containers),
        "node": body.get("spec", {}).get("nodeName"),
        "problem": problem([dict(body)]),
        "containers": list(begun(body)),
    }


def event(body: Mapping[str, Any]) -> Object:
    """One event."""
    return {
        "time": body.get("lastTimestamp") or body.get("eventTime") or body["metadata"].get("creationTimestamp"),
        "type": body.get("type", "Normal"),
        "reason": body.get("reason", ""),
        "message": body.get("message", ""),
        "about": f"{body['involvedObject'].get('kind')} {body['involvedObject'].get('name')}",
        "count": body.get("count") or 1,
    }
