"""ScaledObjects are what KEDA's own Go types can hold, and what its webhook takes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from integration.harness import read_by_go
from tunesmith.api.modeldeployment import Autoscaling
from tunesmith.children.autoscaling import autoscaler
from tunesmith.children.meta import Owner
from tunesmith_cluster import build
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.prometheus import program

OWNER = Owner("ModelDeployment", "ns", "chat", "uid")
PROMETHEUS = "http://prometheus.monitoring:9090"


def wanted(*, gateway: bool = False, **spec: Any) -> dict[str, Any]:
    spec = {"scaler": "KEDA", "prometheus": PROMETHEUS, "maxReplicas": 4, "queueLength": 3} | spec
    return autoscaler(OWNER, Autoscaling.model_validate(spec), gateway=gateway)


@pytest.mark.parametrize("spec", [{}, {"minReplicas": 0}, {"cacheUsagePercent": 80, "scaleDownSeconds": 60}])
def test_a_scaled_object_is_what_keda_reads(spec: dict[str, Any]) -> None:
    made = wanted(**spec)
    read = read_by_go(build.SCALEDOBJECT, made)
    modifiers = read["spec"]["advanced"].pop("scalingModifiers", {})
    assert not modifiers
    assert read["spec"]["advanced"].pop("restoreToOriginalReplicaCount", False) is False
    assert read["spec"] == made["spec"]
    assert read["spec"]["scaleTargetRef"]["kind"] == "ModelDeployment"


def test_a_field_that_keda_does_not_know_and_bounds_that_it_refuses_are_seen() -> None:
    made = wanted()
    with pytest.raises(subprocess.CalledProcessError) as unknown:
        read_by_go(build.SCALEDOBJECT, {**made, "spec": {**made["spec"], "minReplicas": 1}})
    assert "minReplicas" in unknown.value.stderr
    with pytest.raises(subprocess.CalledProcessError) as refused:
        read_by_go(build.SCALEDOBJECT, {**made, "spec": {**made["spec"], "minReplicaCount": 5}})
    assert "must be less than MaxReplicaCount" in refused.value.stderr


def test_what_gateways_hold_is_a_queue_also_where_there_is_no_engine(tmp_path: Path) -> None:
    """By promtool, as Prometheus computes it."""
    made = wanted(gateway=True, minReplicas=0)
    query = made["spec"]["triggers"][0]["metadata"]["query"]
    engine = 'vllm:num_requests_waiting{namespace="ns",pod="chat-engine-1"}'
    gateway = 'tunesmith_gateway_held_requests{namespace="ns",pod="chat-gateway-%s"}'
    other = 'tunesmith_gateway_held_requests{namespace="other",pod="chat-gateway-1"}'
    cases = {
        5: {gateway % 1: 2, gateway % 2: 3, other: 50},
        7: {engine: 7},
        9: {engine: 7, gateway % 1: 2},
        0: {other: 1},
    }
    tests = [
        {
            "input_series": [{"series": one, "values": str(value)} for one, value in series.items()],
            "promql_expr_test": [
                {"expr": query, "eval_time": "0m", "exp_samples": [{"labels": "{}", "value": result}]}
            ],
        }
        for result, series in cases.items()
    ]
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"tests": tests}))
    command = [program(Paths.from_environment(), "promtool"), "test", "rules", tmp_path / "test.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
