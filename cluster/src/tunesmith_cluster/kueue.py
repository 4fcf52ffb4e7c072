"""Kueue, which starts Jobs when their queue has room."""

from __future__ import annotations

from pathlib import Path

from tunesmith_cluster import build
from tunesmith_cluster.managers import LOOPBACK, Manager

NAMESPACE = "kueue-system"
_HEALTH_PORT = 9445

KUEUE = Manager(
    name="kueue",
    title="Kueue",
    module=build.KUEUE,
    chart=build.KUEUE_CHART,
    namespace=NAMESPACE,
    webhook_port=9443,
    metrics_port=9444,
    health_port=_HEALTH_PORT,
    ready=f"http://{LOOPBACK}:{_HEALTH_PORT}/readyz",
    # Jobs and nothing else.
    settings={
        "apiVersion": "config.kueue.x-k8s.io/v1beta2",
        "kind": "Configuration",
        "namespace": NAMESPACE,
        "integrations": {"frameworks": ["batch/job"]},
        # An API server of its own, and other clusters.
        "featureGates": {"VisibilityOnDemand": False, "MultiKueue": False},
    },
    chart_value="managerConfig.controllerManagerConfigYaml",
    etc=Path("kueue/metrics/certs"),  # of its metrics' port
)
