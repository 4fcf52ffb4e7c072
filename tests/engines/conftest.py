"""Engines over several pods: LeaderWorkerSet's own controller, a real kubelet, and a real vLLM in the pods.

Needs the trainer's environment, for the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.harness import Kubectl, chart_images, eventually, own_namespace, prepare
from queueing.resources import conditions, job
from serving.conftest import METADATA, Forge, forge  # noqa: F401  a fixture
from tunesmith_cluster import Cluster, environments, tools, workloads
from tunesmith_cluster.environments import TRAINER
from tunesmith_cluster.images import NONROOT
from tunesmith_cluster.lws import LWS
from tunesmith_cluster.progress import Reporter
from tunesmith_cluster.release import Release

ENGINE_IMAGE = "engines-vllm:1"
FILES_IMAGE = "engines-files:1"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    cluster = Cluster()
    cluster.up(managers=[LWS])
    prepare(cluster)
    metadata = tmp_path_factory.mktemp("metadata")
    (metadata / "vllm.dist-info").mkdir()
    (metadata / "vllm.dist-info" / "METADATA").write_text(METADATA)
    environment = workloads.image_environment(environments.ensure(cluster.paths, TRAINER), with_source=False)
    cluster.load_image(
        ENGINE_IMAGE,
        copies=[(metadata, "/metadata")],
        # By default each pod takes the same cores for itself.
        environment={**environment, "PYTHONPATH": "/metadata", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
        working_directory="/tmp",
        user=NONROOT,
    )
    return cluster


@pytest.fixture(scope="module")
def kubectl(cluster: Cluster) -> Iterator[Kubectl]:
    with own_namespace(cluster, "engines") as kubectl:
        yield kubectl


@pytest.fixture(scope="module")
def operated(cluster: Cluster, kubectl: Kubectl) -> Iterator[None]:
    """The namespace has an operator, in a pod and with the rights of the chart: where two engines start, a process
    beside the cluster gets too little of two cores to keep its Lease.
    """
    helm = tools.find("helm", cluster.paths, Reporter())
    release = Release(helm, cluster.kubeconfig, kubectl.namespace, kubectl.namespace)
    chosen = [f"fullnameOverride={release.name}", f"watchNamespaces={{{kubectl.namespace}}}", "crds.enabled=false"]
    release.install(chart_images(cluster, ENGINE_IMAGE), [f"--set={value}" for value in chosen])
    yield
    print(kubectl("logs", f"deployment/{release.name}", "--tail=-1"))
    release.uninstall()


@pytest.fixture(scope="module")
def base(forge: Forge) -> Path:  # noqa: F811
    return forge.base()


@pytest.fixture(scope="module")
def adapter(forge: Forge, base: Path) -> Path:  # noqa: F811
    return forge.adapter(base, seed=81)


@pytest.fixture(scope="module")
def store(cluster: Cluster, kubectl: Kubectl, base: Path, adapter: Path) -> None:
    """On the claim tunesmith-store: the base as `base`, the adapter as `first`."""
    cluster.load_image(FILES_IMAGE, copies=[(base, "/files/base"), (adapter, "/files/first")])
    kubectl.apply(job("files", "cp -r /files/. .", image=FILES_IMAGE))
    eventually(
        lambda: "Complete" in conditions(kubectl.get("job", "files")),
        lambda: kubectl("describe", "pods"),
    )
