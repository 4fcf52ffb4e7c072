"""The operator's own metrics, served at :9090/metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from tunesmith.api.job import Accounting, JobStatus
from tunesmith.decide.lifecycle import terminal
from tunesmith.decide.world import Status

RECONCILES = Counter("tunesmith_reconciles_total", "Passes over a resource.", ["kind", "result"])
RECONCILE_SECONDS = Histogram("tunesmith_reconcile_seconds", "Duration of a pass.", ["kind"])
QUEUE_DEPTH = Gauge("tunesmith_queue_depth", "Resources that are due and wait for a worker.")
QUEUE_OLDEST = Gauge("tunesmith_queue_oldest_seconds", "How long the one that waits longest has been due.")
LEADER = Gauge("tunesmith_leader", "1 while this replica leads.")
CONDITION_CHANGES = Counter(
    "tunesmith_condition_changes_total",
    "Conditions that came to say something else.",
    ["kind", "namespace", "type", "status", "reason"],
)
JOBS_ENDED = Counter("tunesmith_jobs_ended_total", "Jobs that are over.", ["kind", "namespace", "reason"])
ATTEMPTS_ENDED = Counter(
    "tunesmith_attempts_ended_total", "Attempts that did not end well.", ["kind", "namespace", "reason"]
)
DEVICE_HOURS = Counter(
    "tunesmith_device_hours_total",
    "Devices times hours: asked for, used by running pods, lost to work done again.",
    ["namespace", "device", "what"],
)
COST = Counter("tunesmith_cost_total", "Device-hours asked for times the price of the device.", ["namespace", "device"])


def follow(kind: str, namespace: str, old: Status, new: Status) -> None:
    """Count what the status of a resource has just come to say."""
    said = {(one.type, one.status, one.reason) for one in old.conditions}
    for condition in new.conditions:
        if (found := (condition.type, condition.status, condition.reason)) not in said:
            CONDITION_CHANGES.labels(kind, namespace, *found).inc()
    if isinstance(old, JobStatus) and isinstance(new, JobStatus):
        _follow_job(kind, namespace, old, new)


def _follow_job(kind: str, namespace: str, old: JobStatus, new: JobStatus) -> None:
    if terminal(new) and not terminal(old):
        reason = next(c.reason for c in new.conditions if c.type == "Succeeded")
        JOBS_ENDED.labels(kind, namespace, reason).inc()
    ended = {one.number for one in old.attempts if one.reason}
    for attempt in new.attempts:
        if attempt.reason and attempt.reason != "Completed" and attempt.number not in ended:
            ATTEMPTS_ENDED.labels(kind, namespace, attempt.reason).inc()
    if new.accounting:
        before = old.accounting or Accounting(device=new.accounting.device, count=0, updated=new.accounting.updated)
        for what in ("asked", "used", "lost"):
            grown = getattr(new.accounting, f"{what}_hours") - getattr(before, f"{what}_hours")
            DEVICE_HOURS.labels(namespace, new.accounting.device, what).inc(max(0.0, grown))
        COST.labels(namespace, new.accounting.device).inc(max(0.0, (new.accounting.cost or 0) - (before.cost or 0)))
