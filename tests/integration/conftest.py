"""The operator against a real API server and kubelet. Trainer pods run a script that ends as the test wants."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from integration.harness import Kubectl, clean_operator, own_namespace, prepare
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
    with own_namespace(cluster, "it") as kubectl:
        yield kubectl


@pytest.fixture(scope="session")
def asked(cluster: Cluster) -> Iterator[Kubectl]:
    """A namespace for questions that leave nothing behind: `--dry-run=server`."""
    with own_namespace(cluster, "asked") as kubectl:
        yield kubectl


@pytest.fixture
def running(cluster: Cluster, kubectl: Kubectl, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with clean_operator(cluster, kubectl.namespace, tmp_path / "operator.log") as process:
        yield process


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[Client]:
    async with Client() as client:
        yield client


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as http:
        yield http
    await asyncio.sleep(0)  # lets the transport close
