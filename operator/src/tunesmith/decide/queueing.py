"""Kueue: the Job is made suspended and carries the queue's name; whether it may start is Kueue's to say.

https://kueue.sigs.k8s.io/docs/tasks/run/jobs/
"""

from __future__ import annotations

from dataclasses import dataclass

from tunesmith.api.job import JobSpec, JobStatus
from tunesmith.children.meta import Object

# Conditions of a Workload that say why it waits, the most telling first.
TELLING = ("Evicted", "Preempted", "QuotaReserved", "Admitted")


@dataclass(frozen=True)
class Admission:
    """What Kueue says of the Job."""

    admitted: bool
    reason: str
    message: str

    def preempted(self, old: JobStatus) -> bool:
        """Whether the Job was admitted before and is not any more."""
        was = next((c.status for c in old.conditions if c.type == "Admitted"), None)
        return was == "True" and not self.admitted


def admission(spec: JobSpec, job: Object | None, workload: Object | None) -> Admission | None:
    """Whether the Job is admitted. None: it is in no queue."""
    if spec.queue_name is None:
        return None
    if job is None:
        return Admission(False, "Queued", f"waits in queue {spec.queue_name}")
    if not job["spec"].get("suspend"):
        return Admission(True, "Admitted", f"admitted by queue {spec.queue_name}")
    conditions = {c["type"]: c for c in ((workload or {}).get("status") or {}).get("conditions", ())}
    for type_ in TELLING:
        one = conditions.get(type_)
        if one and one.get("message") and (one["status"] == "True") == (type_ in {"Evicted", "Preempted"}):
            return Admission(False, one.get("reason") or "Queued", f"queue {spec.queue_name}: {one['message']}")
    return Admission(False, "Queued", f"waits in queue {spec.queue_name}")
