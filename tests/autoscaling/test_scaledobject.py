"""ScaledObjects are what KEDA's own Go types can hold, and what its webhook takes."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from tunesmith.api.modeldeployment import Autoscaling
from tunesmith.children.autoscaling import autoscaler
from tunesmith.children.meta import Owner
from tunesmith_cluster import build, golang
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.progress import Reporter

OWNER = Owner("ModelDeployment", "ns", "chat", "uid")
PROMETHEUS = "http://prometheus.monitoring:9090"


def read_by_keda(body: dict[str, Any]) -> dict[str, Any]:
    """What its types, which know no other field, read; raises CalledProcessError."""
    paths = Paths.from_environment()
    if not build.is_built(paths.cache, build.SCALEDOBJECT):
        build.build(paths.cache, build.SCALEDOBJECT, golang.ensure(paths, Reporter()))
    binary = build.binary(paths.cache, "scaledobject")
    done = subprocess.run([binary], input=json.dumps(body), capture_output=True, text=True, check=True)
    read: dict[str, Any] = json.loads(done.stdout)
    return read


def wanted(**spec: Any) -> dict[str, Any]:
    spec = {"scaler": "KEDA", "prometheus": PROMETHEUS, "maxReplicas": 4, "queueLength": 3} | spec
    return autoscaler(OWNER, Autoscaling.model_validate(spec))


@pytest.mark.parametrize("spec", [{}, {"minReplicas": 0}, {"cacheUsagePercent": 80, "scaleDownSeconds": 60}])
def test_a_scaled_object_is_what_keda_reads(spec: dict[str, Any]) -> None:
    made = wanted(**spec)
    read = read_by_keda(made)
    modifiers = read["spec"]["advanced"].pop("scalingModifiers", {})
    assert not modifiers
    assert read["spec"]["advanced"].pop("restoreToOriginalReplicaCount", False) is False
    assert read["spec"] == made["spec"]
    assert read["spec"]["scaleTargetRef"]["kind"] == "ModelDeployment"


def test_a_field_that_keda_does_not_know_and_bounds_that_it_refuses_are_seen() -> None:
    made = wanted()
    with pytest.raises(subprocess.CalledProcessError) as unknown:
        read_by_keda({**made, "spec": {**made["spec"], "minReplicas": 1}})
    assert "minReplicas" in unknown.value.stderr
    with pytest.raises(subprocess.CalledProcessError) as refused:
        read_by_keda({**made, "spec": {**made["spec"], "minReplicaCount": 5}})
    assert "must be less than MaxReplicaCount" in refused.value.stderr
