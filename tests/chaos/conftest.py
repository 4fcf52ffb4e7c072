"""The cluster of the integration tests, with a second node."""

from __future__ import annotations

import pytest
from integration.conftest import kubectl  # noqa: F401  a fixture
from integration.harness import prepare
from tunesmith_cluster import Cluster


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.up(nodes=2)
    prepare(cluster)
    return cluster
