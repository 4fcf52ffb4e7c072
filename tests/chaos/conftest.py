"""The cluster of the integration tests, with a second node."""

from __future__ import annotations

import pytest
from integration.conftest import cluster as _one_node
from integration.conftest import kubectl  # noqa: F401  a fixture
from tunesmith_cluster import Cluster


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.up(nodes=2)
    return _one_node.__wrapped__()  # type: ignore[attr-defined,no-any-return]
