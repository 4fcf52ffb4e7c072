"""What Prometheus is told of jobs."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from prometheus_client import REGISTRY
from tunesmith import metrics
from tunesmith.api.finetunejob import FineTuneJobStatus
from tunesmith.api.modeldeployment import ModelDeploymentStatus
from unit.operator.builders import STAMP, attempt


def status(reason: str, over: bool, *attempts: dict[str, Any], hours: float = 0) -> FineTuneJobStatus:
    condition = {
        "type": "Succeeded", "status": "True" if over else "Unknown", "reason": reason, "message": "",
        "lastTransitionTime": STAMP, "observedGeneration": 1,
    }  # fmt: skip
    account = {"device": "nvidia.com/gpu", "count": 8, "updated": STAMP, "cost": 2 * hours}
    account |= {"askedHours": hours, "usedHours": hours / 2, "lostHours": hours / 4}
    return FineTuneJobStatus.model_validate(
        {"conditions": [condition], "attempts": list(attempts), "accounting": account}
    )


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_every_change_is_counted_once() -> None:
    lost = attempt(1, reason="NodeLost", endTime=STAMP)
    stages = [
        FineTuneJobStatus(),
        status("Running", False, attempt(1), hours=1),
        status("Restarting", False, attempt(1, reason="NodeLost"), hours=2),
        status("Running", False, lost, attempt(2), hours=3),
        status("Completed", True, lost, attempt(2, reason="Completed", endTime=STAMP), hours=4),
    ]
    for old, new in pairwise(stages):
        metrics.follow("FineTuneJob", "metered", old, new)
    job = {"kind": "FineTuneJob", "namespace": "metered"}
    succeeded = {**job, "type": "Succeeded"}
    assert value("tunesmith_condition_changes_total", **succeeded, status="Unknown", reason="Running") == 2
    assert value("tunesmith_condition_changes_total", **succeeded, status="True", reason="Completed") == 1
    assert value("tunesmith_jobs_ended_total", **job, reason="Completed") == 1
    assert value("tunesmith_attempts_ended_total", **job, reason="NodeLost") == 1
    assert value("tunesmith_attempts_ended_total", **job, reason="Completed") == 0
    gpu = {"namespace": "metered", "device": "nvidia.com/gpu"}
    hours = [value("tunesmith_device_hours_total", **gpu, what=what) for what in ("asked", "used", "lost")]
    assert hours == [4, 2, 1]
    assert value("tunesmith_cost_total", **gpu) == 8


def test_conditions_of_deployments_are_counted_too() -> None:
    def ready(status: str, reason: str, message: str = "") -> ModelDeploymentStatus:
        condition = {"type": "Ready", "status": status, "reason": reason, "message": message,
                     "lastTransitionTime": STAMP, "observedGeneration": 1}  # fmt: skip
        return ModelDeploymentStatus.model_validate({"conditions": [condition]})

    stages = [ready("False", "Degraded", "1 of 2"), ready("False", "Degraded", "0 of 2"), ready("True", "Ready")]
    for old, new in pairwise([ModelDeploymentStatus(), *stages]):
        metrics.follow("ModelDeployment", "metered", old, new)
    labels = {"kind": "ModelDeployment", "namespace": "metered", "type": "Ready"}
    assert value("tunesmith_condition_changes_total", **labels, status="False", reason="Degraded") == 1
    assert value("tunesmith_condition_changes_total", **labels, status="True", reason="Ready") == 1
