"""What monitors select, of a pod's and a Service's targets."""

from __future__ import annotations

from typing import Any

import pytest
from tunesmith_cluster import monitors

SERVICE_MONITOR: dict[str, Any] = {
    "kind": "ServiceMonitor",
    "metadata": {"name": "m", "namespace": "system"},
    "spec": {"selector": {"matchLabels": {"app": "op"}}, "endpoints": [{"port": "metrics", "honorLabels": True}]},
}
POD_MONITOR: dict[str, Any] = {
    "kind": "PodMonitor",
    "metadata": {"name": "m", "namespace": "system"},
    "spec": {
        "namespaceSelector": {"any": True},
        "selector": {"matchLabels": {"role": "engine"}},
        "podTargetLabels": ["tunesmith.io/name"],
        "podMetricsEndpoints": [{"port": "agent", "path": "/metrics", "interval": "15s"}],
    },
}


def pod(name: str, namespace: str = "a", phase: str = "Running", **labels: str) -> dict[str, Any]:
    agent = {"name": "agent", "ports": [{"name": "agent", "containerPort": 9500}]}
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"tunesmith.io/name": "chat", **labels}},
        "spec": {"containers": [{"name": "engine"}], "initContainers": [agent]},
        "status": {"phase": phase, "podIP": "10.0.0.1"},
    }


SERVICE = {"kind": "Service", "metadata": {"name": "metrics", "namespace": "system", "labels": {"app": "op"}}}
SLICE = {
    "kind": "EndpointSlice",
    "metadata": {
        "name": "metrics-1", "namespace": "system", "labels": {"kubernetes.io/service-name": "metrics"}
    },
    "ports": [{"name": "metrics", "port": 9090}, {"name": "other", "port": 1}],
    "endpoints": [{"addresses": ["10.0.0.2"], "targetRef": {"name": "op-1"}}],
}  # fmt: skip
AGENT = {"targets": ["10.0.0.1:9500"], "labels": {"namespace": "a", "pod": "p", "tunesmith_io_name": "chat"}}


@pytest.mark.parametrize(
    ("monitor", "port", "objects", "wanted"),
    [
        (POD_MONITOR, "agent", [pod("p", role="engine")], [AGENT]),
        (POD_MONITOR, "agent", [pod("p", role="other")], []),
        (POD_MONITOR, "agent", [pod("p", phase="Succeeded", role="engine")], []),
        (POD_MONITOR, "progress", [pod("p", role="engine")], []),
        (
            SERVICE_MONITOR,
            "metrics",
            [SERVICE, SLICE, pod("op-1", "system")],
            [{"targets": ["10.0.0.2:9090"], "labels": {"namespace": "system", "pod": "op-1"}}],
        ),
        (SERVICE_MONITOR, "metrics", [{**SERVICE, "metadata": {**SERVICE["metadata"], "labels": {}}}, SLICE], []),
    ],
    ids=["an agent", "other labels", "a pod that is over", "another port", "a service", "another service"],
)
def test_targets(monitor: dict[str, Any], port: str, objects: list[Any], wanted: list[Any]) -> None:
    assert monitors.targets(monitor, port, objects) == wanted
