"""The operator against a real API server and kubelet. Trainer pods run a script that ends as the test wants."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import aiohttp
import pytest
from integration.harness import Kubectl, operator, prepare
from tunesmith.kube.client import Client
from tunesmith_cluster import Cluster


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.up()
    prepare(cluster)
    return cluster


@pytest.fixture
def kubectl(cluster: Cluster) -> Iterator[Kubectl]:
    """A namespace of the test's own, under the restricted Pod Security Standard, with a store."""
    namespace = f"it-{uuid4().hex[:8]}"
    kubectl = Kubectl(cluster.binary("kubectl"), namespace)
    kubectl("create", "namespace", namespace)
    kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "tunesmith-store"},
            "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
        }
    )
    yield kubectl
    kubectl("delete", "namespace", namespace, "--wait=false")


@pytest.fixture
def running(cluster: Cluster, kubectl: Kubectl, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A running operator, whose log is shown when a test fails and must hold no traceback."""
    log = tmp_path / "operator.log"
    with operator(cluster, kubectl.namespace, log) as process:
        yield process
    print(log.read_text())
    assert "Traceback" not in log.read_text()


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[Client]:
    async with Client() as client:
        yield client


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as http:
        yield http
    await asyncio.sleep(0)  # lets the transport close
