"""Our health checks, run by Argo CD's own program on resources as the API server had them."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
from argocd.conftest import CHECKS
from gitops.support import folder
from gitops.test_health import CASES
from tunesmith_cluster import argocd, build
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.progress import Reporter


@pytest.mark.parametrize(("kind", "case"), CASES, ids=[f"{kind}-{case['inputPath']}" for kind, case in CASES])
def test_argo_cd_says_of_a_resource_what_our_tests_of_the_check_say(kind: str, case: dict[str, Any]) -> None:
    paths = Paths.from_environment()
    build.ensure(paths, [build.ARGOCD], Reporter())
    resource = folder(kind) / case["inputPath"]
    command = [
        *(build.binary(paths.cache, argocd.NAME), "admin", "settings", "resource-overrides", "health", resource),
        f"--argocd-cm-path={CHECKS}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = case["healthStatus"]
    assert done.stdout.strip() == f"STATUS: {said['status']}\nMESSAGE: {said['message']}"
