"""What Flux says of resources by the expressions of examples/flux/models.yaml: its own code evaluates them."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
import yaml
from gitops.support import KINDS, folder
from gitops.test_health import CASES, HARD_TO_CATCH
from integration.harness import read_by_go
from tunesmith.api.kinds import JOBS
from tunesmith_cluster import build
from tunesmith_cluster.environments import ROOT

KUSTOMIZATION = yaml.safe_load((ROOT / "examples/flux/models.yaml").read_text(encoding="utf-8"))
# Flux has no word for what people suspended: it is not made yet, so what depends on it waits, as Argo CD's waves do.
STATUS = {"Healthy": "Current", "Degraded": "Failed", "Progressing": "InProgress", "Suspended": "InProgress"}


def flux(resource: dict[str, Any], kustomization: dict[str, Any] = KUSTOMIZATION) -> dict[str, Any]:
    return read_by_go(build.FLUX, {"kustomization": kustomization, "object": resource})


def seen(resource: dict[str, Any]) -> bool:
    """Whether the operator has looked at the resource as it is."""
    return bool(resource.get("status", {}).get("observedGeneration") == resource["metadata"]["generation"])


@pytest.mark.parametrize(("kind", "case"), CASES, ids=[f"{kind}-{case['inputPath']}" for kind, case in CASES])
def test_flux_says_of_a_real_resource_what_argo_cd_says(kind: str, case: dict[str, Any]) -> None:
    resource = yaml.safe_load((folder(kind) / case["inputPath"]).read_text(encoding="utf-8"))
    assert flux(resource) == {"status": STATUS[case["healthStatus"]["status"]], "message": ""}


@pytest.mark.parametrize(("found", "status"), [case for case in HARD_TO_CATCH if seen(case[0])])
def test_flux_says_of_what_is_hard_to_catch_what_argo_cd_says(found: dict[str, Any], status: str) -> None:
    assert flux(found)["status"] == STATUS[status]


@pytest.mark.parametrize("found", [found for found, _ in HARD_TO_CATCH if not seen(found)])
def test_what_the_operator_has_not_looked_at_is_waited_for(found: dict[str, Any]) -> None:
    """No expression can tell that there is no status: Flux waits for what is Unknown as for what is InProgress."""
    assert flux(found)["status"] == ("InProgress" if "status" in found else "Unknown")


def test_every_kind_has_expressions_and_those_of_jobs_are_the_same() -> None:
    expressions = {one["kind"]: (one["current"], one["failed"]) for one in KUSTOMIZATION["spec"]["healthCheckExprs"]}
    assert expressions.keys() == set(KINDS)
    assert len({expressions[kind] for kind in JOBS}) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"healthCheckExpressions": []}, 'unknown field "healthCheckExpressions"'),
        ({"healthCheckExprs": [{"apiVersion": "tunesmith.io/v1alpha1", "current": "status."}]}, "failed to parse"),
    ],
)
def test_what_flux_cannot_read_is_seen(change: dict[str, Any], said: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        flux({"apiVersion": "v1", "kind": "Pod"}, {**KUSTOMIZATION, "spec": {**KUSTOMIZATION["spec"], **change}})
    assert said in refused.value.stderr
