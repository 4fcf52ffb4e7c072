"""A real HorizontalPodAutoscaler over metrics that a real prometheus-adapter serves scales a ModelDeployment by its
queue, through /scale.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from fleet.conftest import Fleet
from integration.harness import eventually

SCALED = 180
"""Seconds. The controller looks every 15 s, and a new pod has to start."""


def conditions(fleet: Fleet) -> dict[str, dict[str, Any]]:
    return {c["type"]: c for c in fleet.kubectl.get("hpa", "chat").get("status", {}).get("conditions", [])}


def pods_are(fleet: Fleet, number: int) -> bool:
    status = fleet.status()
    return status.get("replicas") == status.get("readyReplicas") == number


@pytest.mark.usefixtures("custom_metrics")
def test_waiting_requests_bring_pods_and_they_go_when_nobody_waits(fleet: Fleet) -> None:
    adapter = {"name": "a", "uri": fleet.adapter("one"), "required": "Always"}
    scaling = {"maxReplicas": 3, "queueLength": 2, "cacheUsagePercent": 90, "scaleDownSeconds": 15}
    fleet.apply(adapter, autoscaling=scaling)
    fleet.wait_for("a", state="Ready")
    eventually(
        lambda: conditions(fleet).get("ScalingActive", {}).get("reason") == "ValidMetricFound",
        lambda: str(conditions(fleet)),
        SCALED,
    )
    assert fleet.kubectl.get("mdep", "chat")["spec"]["replicas"] == 1
    with fleet.load("a", streams=1) as always:
        began = time.monotonic()
        with fleet.load("a", streams=20) as many:
            eventually(lambda: pods_are(fleet, 3), lambda: f"{fleet.status()} {conditions(fleet)}", SCALED)
            up = time.monotonic() - began
        ended = time.monotonic()
        eventually(lambda: pods_are(fleet, 1), lambda: f"{fleet.status()} {conditions(fleet)}", SCALED)
        down = time.monotonic() - ended
        time.sleep(2)
    print(f"\n1 -> 3 pods after {up:.0f} s, 3 -> 1 after {down:.0f} s; {len(many)} and {len(always)} streams")
    assert {answer.status for answer in [*many, *always]} == {200}, "none was lost as pods came and went"
    resource = fleet.kubectl("get", "mdep", "chat", "-o", "json", "--show-managed-fields")
    assert writers_of_replicas(resource) == {("kube-controller-manager", "scale")}


def writers_of_replicas(resource: str) -> set[tuple[str, str]]:
    """(manager, subresource) of each that owns spec.replicas."""
    fields = json.loads(resource)["metadata"]["managedFields"]
    return {
        (one["manager"], one.get("subresource", ""))
        for one in fields
        if "f:replicas" in one["fieldsV1"].get("f:spec", {})
    }
