"""Builders of observed objects: a test says what matters to it, the rest is filled in."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tunesmith.decide.job import decide
from tunesmith.decide.world import Decision, World
from tunesmith.settings import Settings

SETTINGS = Settings()
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STAMP = "2026-01-02T03:04:05Z"
UID = "0c7e7b1e-0000-4000-8000-000000000000"


def resource(kind: str, spec: dict[str, Any], status: dict[str, Any] | None = None, name: str = "x") -> dict[str, Any]:
    return {
        "apiVersion": "tunesmith.io/v1alpha1",
        "kind": kind,
        "metadata": {"namespace": "ns", "name": name, "uid": UID, "generation": 3},
        "spec": spec,
        "status": status or {},
    }


def train(status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    base = {
        "model": {"uri": "pvc://store/base"},
        "datasets": [{"uri": "configmap://data/train.jsonl"}],
        "method": {"type": "SFT"},
        "memory": {"check": "Disabled"},
    }
    return resource("FineTuneJob", {**base, **spec}, status)


def merge(status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    base = {"model": {"uri": "pvc://store/base"}, "adapters": [{"fineTuneJobRef": {"name": "tuned"}}]}
    return resource("MergeJob", {**base, **spec}, status)


def infer(status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    base = {
        "model": {"uri": "pvc://store/base"},
        "adapter": {"fineTuneJobRef": {"name": "tuned"}},
        "datasets": [{"uri": "configmap://data/test.jsonl"}],
    }
    return resource("InferenceJob", {**base, **spec}, status)


def serve(status: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    return resource("ModelDeployment", {"model": {"uri": "pvc://store/base"}, **spec}, status)


def world(resource: dict[str, Any], **fields: Any) -> World:
    return World(resource=resource, now=fields.pop("now", NOW), token="secret-token", **fields)


def mine(kind: str, name: str, **body: Any) -> dict[str, Any]:
    labels = body.pop("labels", {})
    meta = {"namespace": "ns", "name": name, "uid": "u-" + name, "labels": labels, "ownerReferences": [{"uid": UID}]}
    return {"kind": kind, "metadata": meta, **body}


def job(attempt: int = 1, ended: str | None = None, kind: str = "train") -> dict[str, Any]:
    conditions = [{"type": ended, "status": "True"}] if ended else []
    return mine(
        "Job",
        f"x-{kind}-{attempt}",
        labels={"tunesmith.io/attempt": str(attempt)},
        spec={"parallelism": 1},
        status={"conditions": conditions},
    )


def pod(name: str = "p0", attempt: int = 1, rank: int = 0, **status: Any) -> dict[str, Any]:
    body = mine(
        "Pod",
        name,
        labels={"tunesmith.io/attempt": str(attempt)},
        spec={"nodeName": "node-1"},
        status={"phase": "Running", "podIP": "10.0.0.9", **status},
    )
    body["metadata"]["annotations"] = {"batch.kubernetes.io/job-completion-index": str(rank)}
    return body


def going(pod: dict[str, Any], reason: str | None = None, since: str = STAMP) -> dict[str, Any]:
    """A pod that is being deleted, with the condition that says who did it."""
    pod["metadata"]["deletionTimestamp"] = since
    if reason:
        condition = {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": f"because of {reason}"}
        pod["status"]["conditions"] = [*pod["status"].get("conditions", []), condition]
    return pod


def attempt(number: int = 1, **fields: Any) -> dict[str, Any]:
    """A record of an attempt; open unless it has an endTime."""
    return {"number": number, "nodes": 1, "microBatchSize": 1, **fields}


def begun(*attempts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The status of a job that has begun."""
    return {"attempts": list(attempts or [attempt()]), "startTime": STAMP, **fields}


def terminated(code: int, message: str = "", finished: str = STAMP, reason: str = "Error") -> dict[str, Any]:
    state = {"terminated": {"exitCode": code, "message": message, "finishedAt": finished, "reason": reason}}
    return {"phase": "Failed" if code else "Succeeded", "containerStatuses": [{"name": "trainer", "state": state}]}


def finished(kind: str, name: str, artifact: str = "adapters", succeeded: str = "True") -> dict[str, Any]:
    """A job that others refer to, over."""
    condition = {
        "type": "Succeeded",
        "status": succeeded,
        "reason": "Completed" if succeeded == "True" else "DataError",
        "message": "",
        "lastTransitionTime": STAMP,
        "observedGeneration": 1,
    }
    status: dict[str, Any] = {"conditions": [condition], "observedGeneration": 3}
    if succeeded == "True":
        uri = f"pvc://store/{artifact}/abc"
        status["artifact"] = {"kind": artifact, "uri": uri, "digest": "sha256:abc", "base": "hf://org/base"}
    return resource(kind, {}, status, name=name)


def children(*objects: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(o["kind"], o["metadata"]["name"]): o for o in objects}


def decided(world: World) -> Decision:
    """What is decided for a job with the operator's default settings."""
    decision = decide(world, SETTINGS)
    assert decision is not None
    return decision
