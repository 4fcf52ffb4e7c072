"""All processes of a cluster, and what has to be done around the start of some of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tunesmith_cluster import addons, controlplane, images, node
from tunesmith_cluster.kueue import KUEUE
from tunesmith_cluster.lws import LWS
from tunesmith_cluster.managers import Manager
from tunesmith_cluster.nodes import Node
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.processes import Service

MANAGERS = (KUEUE, LWS)
"""What a cluster may have besides."""


def managers(paths: Paths, asked: Collection[Manager] = ()) -> list[Manager]:
    """The managers that the cluster has, and those that are asked for."""
    return [manager for manager in MANAGERS if manager in asked or manager.is_added(paths)]


def services(paths: Paths, nodes: Sequence[Node], added: Sequence[Manager]) -> list[Service]:
    """All processes, each of which may rely on those before it being ready."""
    return [
        *controlplane.services_before_nodes(paths),
        *(service for each in nodes for service in node.services(each)),
        *controlplane.services_after_nodes(paths),
        *(manager.service(paths) for manager in added),
    ]


def before_start(paths: Paths, name: str) -> None:
    """What a process needs to find when it starts."""
    for manager in MANAGERS:
        if name == manager.name:
            manager.install(paths)


def when_ready(paths: Paths, nodes: Sequence[Node], name: str) -> None:
    """What has to be done once a process is ready; doing it again changes nothing."""
    if name == controlplane.APISERVER:
        addons.apply(paths, addons.manifests(paths.volumes))
    for manager in MANAGERS:
        if name == manager.name:
            manager.connect(paths)
    for each in nodes:
        if name == each.containerd_service:
            images.load_base(paths)
            images.copy_missing(each)


def stop_order(name: str) -> int:
    """The smaller, the earlier: kubelets first, or they would start anew what ends, and containerds last of all."""
    first = ("kubelet-", "local-path-provisioner", "kube-controller-manager", "kube-scheduler", "kube-proxy")
    last = (controlplane.APISERVER, "etcd", "containerd-")
    for rank, prefix in enumerate(first):
        if name.startswith(prefix):
            return rank
    for rank, prefix in enumerate(last):
        if name.startswith(prefix):
            return len(first) + 1 + rank
    return len(first)
