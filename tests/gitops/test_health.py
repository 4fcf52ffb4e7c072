"""Argo CD's health checks of each kind, on resources as the API server had them (tests/gitops/test_drift.py)."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from gitops.support import CUSTOMIZATIONS, KINDS, folder, health
from tunesmith.api.kinds import JOBS
from tunesmith_cluster.environments import ROOT

CASES = [
    (kind, case)
    for kind in KINDS
    for case in yaml.safe_load((folder(kind) / "health_test.yaml").read_text(encoding="utf-8"))["tests"]
]


@pytest.mark.parametrize(("kind", "case"), CASES, ids=[f"{kind}-{case['inputPath']}" for kind, case in CASES])
def test_health_of_a_real_resource(kind: str, case: dict[str, Any]) -> None:
    resource = yaml.safe_load((folder(kind) / case["inputPath"]).read_text(encoding="utf-8"))
    assert resource["kind"] == kind
    assert health(resource) == (case["healthStatus"]["status"], case["healthStatus"]["message"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_resource_of_the_test_data_is_in_a_test(kind: str) -> None:
    named = {case["inputPath"] for of, case in CASES if of == kind}
    assert named == {f"testdata/{path.name}" for path in (folder(kind) / "testdata").iterdir()}


def test_jobs_of_every_kind_have_the_same_check() -> None:
    assert len({(folder(kind) / "health.lua").read_bytes() for kind in JOBS}) == 1


def condition(type_: str, status: str, reason: str) -> dict[str, Any]:
    return {"type": type_, "status": status, "reason": reason, "message": "m"}


def resource(kind: str, *conditions: dict[str, Any], seen: int = 2) -> dict[str, Any]:
    return {
        "apiVersion": "tunesmith.io/v1alpha1",
        "kind": kind,
        "metadata": {"generation": 2},
        "status": {"observedGeneration": seen, "conditions": list(conditions)},
    }


HARD_TO_CATCH = [
    ({"apiVersion": "tunesmith.io/v1alpha1", "kind": "FineTuneJob", "metadata": {"generation": 1}}, "Progressing"),
    (resource("FineTuneJob", condition("Succeeded", "Unknown", "Suspended"), seen=1), "Progressing"),
    (resource("FineTuneJob", condition("Succeeded", "True", "Completed"), seen=1), "Healthy"),
    (resource("FineTuneJob", condition("Succeeded", "Unknown", "Rejected")), "Degraded"),
    (
        resource(
            "FineTuneJob", condition("Succeeded", "Unknown", "Running"), condition("Stalled", "True", "NoProgress")
        ),
        "Degraded",
    ),
    (resource("ModelDeployment", condition("Ready", "True", "Ready"), seen=1), "Progressing"),
    (resource("ModelDeployment", condition("Ready", "True", "Updating")), "Progressing"),
    (resource("ModelDeployment", condition("Ready", "False", "NameTaken")), "Degraded"),
    (resource("ModelDeployment", condition("Ready", "False", "ScaledToZero")), "Healthy"),
    (
        resource(
            "ModelDeployment",
            condition("Ready", "False", "ScaledToZero"),
            condition("AdaptersReady", "False", "AdapterFailed"),
        ),
        "Healthy",
    ),
    (
        resource(
            "ModelDeployment", condition("Ready", "True", "Ready"), condition("AdaptersReady", "False", "Loading")
        ),
        "Progressing",
    ),
]


@pytest.mark.parametrize(("found", "status"), HARD_TO_CATCH)
def test_health_of_what_is_hard_to_catch(found: dict[str, Any], status: str) -> None:
    assert health(found)[0] == status


def test_the_config_map_of_argo_cd_holds_these_very_scripts() -> None:
    config = yaml.safe_load((ROOT / "examples/argocd/argocd-cm.yaml").read_text(encoding="utf-8"))["data"]
    for kind in KINDS:
        script = (folder(kind) / "health.lua").read_text(encoding="utf-8")
        assert config[f"resource.customizations.health.tunesmith.io_{kind}"] == script
    assert {path.name for path in CUSTOMIZATIONS.iterdir()} == {"tunesmith.io"}
