"""Two nodes and Kueue: what an operator meets where others want the same machines, and where machines get lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from integration.conftest import running  # noqa: F401  a fixture
from integration.harness import Kubectl, own_namespace, prepare
from queueing.resources import cluster_queue, local_queue, priority_class, resource_flavor
from tunesmith_cluster import Cluster
from tunesmith_cluster.kueue import KUEUE

MakeQueue = Callable[..., str]
MakePriority = Callable[[int], str]


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.up(nodes=2, managers=[KUEUE])
    prepare(cluster)
    return cluster


@pytest.fixture
def kubectl(cluster: Cluster) -> Iterator[Kubectl]:
    with own_namespace(cluster, "queueing") as kubectl:
        yield kubectl


@pytest.fixture
def lossy(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, for a test that loses a node: all of them run again after it."""
    yield cluster
    cluster.up()


@pytest.fixture
def make_queue(kubectl: Kubectl) -> Iterator[MakeQueue]:
    """Makes a LocalQueue whose ClusterQueue has the quotas given, such as cpu="1", and is this namespace's alone.

    Returns the name for the label `kueue.x-k8s.io/queue-name`.
    """
    made: list[str] = []

    def make(**quotas: str) -> str:
        name = f"{kubectl.namespace}-{len(made)}"
        kubectl.apply(resource_flavor(name), cluster_queue(name, kubectl.namespace, quotas), local_queue(name, name))
        made.append(name)
        return name

    yield make
    for name in made:
        kubectl("delete", f"clusterqueue/{name}", f"resourceflavor/{name}", "--wait=false")


@pytest.fixture
def make_priority(kubectl: Kubectl) -> Iterator[MakePriority]:
    """Makes a WorkloadPriorityClass of the value given. Returns the name for `kueue.x-k8s.io/priority-class`."""
    made: list[str] = []

    def make(value: int) -> str:
        name = f"{kubectl.namespace}-{value}"
        kubectl.apply(priority_class(name, value))
        made.append(name)
        return name

    yield make
    for name in made:
        kubectl("delete", f"workloadpriorityclass/{name}", "--wait=false")
