"""One line for people about a resource: how far it is, whether it is done, whether it can still become so."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

KINDS = ("FineTuneJob", "MergeJob", "ModelDeployment")
SHORT_NAMES = {"Job": "job", "FineTuneJob": "ftj", "MergeJob": "mj", "ModelDeployment": "mdep"}
"""As `kubectl get` takes them."""
PLURALS = ("jobs.batch", *(f"{kind.lower()}s.tunesmith.io" for kind in KINDS))

# Reasons of a condition that no waiting changes: the user has to.
_FINAL = frozenset({"ConfigError", "NameTaken", "Rejected"})
# What the operator says of a pod that cannot start. It may pass (a pull is tried again), so it is given time.
_HELD = re.compile(r"^pod \S+(?: cannot be scheduled|, container \S+: \w+)")


@dataclass(frozen=True, slots=True)
class Row:
    """What is shown of a resource."""

    kind: str
    name: str
    status: str = "Pending"
    step: str = ""
    """Of a training; of a deployment, how many of its adapters are served."""
    loss: str = ""
    eta: str = ""
    message: str = ""
    done: bool = False
    failure: str | None = None
    """Why it never gets done."""
    held: str | None = None
    """What holds it up, without what changes from try to try."""
    seconds: float | None = None
    """How long a finished job ran."""

    @property
    def waits(self) -> bool:
        """Whether it has not begun: it waits for another resource."""
        return self.status in {"Pending", "WaitingForReference", "WaitingForInput"}

    def line(self) -> str:
        """The row as text, for a log."""
        parts = [f"{self.kind} {self.name}: {self.status}"]
        what = "adapters" if self.kind == "ModelDeployment" else "step"
        parts += [f"{what} {self.step}"] if self.step else []
        parts += [f"loss {self.loss}"] if self.loss else []
        parts += [f"eta {self.eta}"] if self.eta else []
        return ", ".join(parts) + (f" ({self.message})" if self.message and not self.done else "")


def row(resource: Mapping[str, Any]) -> Row:
    """Read a FineTuneJob, MergeJob or ModelDeployment, or a plain Job."""
    kind, name = resource["kind"], resource["metadata"]["name"]
    status = resource.get("status") or {}
    conditions = {condition["type"]: condition for condition in status.get("conditions") or []}
    if kind == "Job":
        return _job(name, status, conditions)
    if status.get("observedGeneration") != resource["metadata"].get("generation"):
        return Row(kind, name)  # what it says is about an earlier spec
    if kind == "ModelDeployment":
        return _deployment(name, status, conditions)
    succeeded = conditions.get("Succeeded", {})
    progress = status.get("progress") or {}
    loss = progress.get("loss")
    return Row(
        kind,
        name,
        status=succeeded.get("reason", "Pending"),
        step=f"{progress['step']}/{progress['totalSteps']}" if progress else "",
        loss=f"{loss:.3f}" if loss is not None else "",
        eta=(progress.get("eta") or "") if succeeded.get("status") == "Unknown" else "",
        message=succeeded.get("message", ""),
        done=succeeded.get("status") == "True",
        failure=_failure(succeeded, is_job=True),
        held=_held(succeeded),
        seconds=_seconds(status.get("startTime"), status.get("completionTime")),
    )


def _job(name: str, status: Mapping[str, Any], conditions: Mapping[str, Any]) -> Row:
    failed = conditions.get("Failed", {}).get("status") == "True"
    done = conditions.get("Complete", {}).get("status") == "True"
    return Row(
        "Job",
        name,
        status="Failed" if failed else "Completed" if done else "Running" if status.get("active") else "Pending",
        done=done,
        failure=f"See `kubectl logs job/{name}`. {conditions['Failed'].get('message')}" if failed else None,
        seconds=_seconds(status.get("startTime"), status.get("completionTime")),
    )


def _deployment(name: str, status: Mapping[str, Any], conditions: Mapping[str, Any]) -> Row:
    ready, adapters = conditions.get("Ready", {}), conditions.get("AdaptersReady", {})
    failed = adapters.get("message") if adapters.get("reason") == "AdapterFailed" else None
    is_ready = ready.get("status") == "True" and ready.get("reason") != "Updating"
    word = ready if not is_ready or adapters.get("status") == "True" else adapters
    return Row(
        "ModelDeployment",
        name,
        status=word.get("reason", "Pending"),
        step=status.get("adaptersSummary", "") if status.get("adapters") else "",
        message=word.get("message", ""),
        done=is_ready and adapters.get("status") == "True",
        failure=_failure(ready, is_job=False) or failed,
        held=_held(ready),
    )


def _failure(condition: Mapping[str, Any], *, is_job: bool) -> str | None:
    ended = is_job and condition.get("status") == "False"
    if ended or condition.get("reason") in _FINAL:
        return f"{condition.get('reason')}: {condition.get('message')}"
    return None


def _held(condition: Mapping[str, Any]) -> str | None:
    match = _HELD.match(condition.get("message", ""))
    return match[0] if match and condition.get("status") != "True" else None


def _seconds(start: str | None, end: str | None) -> float | None:
    if start is None or end is None:
        return None
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
