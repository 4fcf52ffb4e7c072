"""The nodes: each a kubelet with a containerd, a bridge and folders of its own, all on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tunesmith_cluster import network
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.paths import Paths

MOST = 9
"""More would not do on one machine: each node believes that it has all of its memory and cores."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node, of which nothing but its number has to be known."""

    paths: Paths
    index: int

    @property
    def name(self) -> str:
        """Its name in the cluster."""
        return f"node-{self.index}"

    @property
    def bridge(self) -> str:
        """The link its pods are on, and the name of its network."""
        return network.bridge(self.index)

    @property
    def address(self) -> str:
        """The bridge's own address, under which the kubelet listens."""
        return network.node_address(self.index)

    @property
    def pod_cidr(self) -> str:
        """Its pods' addresses."""
        return network.node_cidr(self.index)

    @property
    def containerd_service(self) -> str:
        """The name of its containerd among the cluster's processes."""
        return f"containerd-{self.name}"

    @property
    def kubelet_service(self) -> str:
        """The name of its kubelet among the cluster's processes, and of its certificate."""
        return f"kubelet-{self.name}"

    @property
    def state(self) -> Path:
        """All that is this node's alone."""
        return self.paths.nodes / self.name

    @property
    def config(self) -> Path:
        """Its configuration files."""
        return self.state / "config"

    @property
    def containerd_socket(self) -> Path:
        """Where its containerd listens."""
        return self.state / "run" / "containerd.sock"

    @property
    def containerd_run(self) -> Path:
        """The containerd daemon's run-time state: one bundle per container."""
        return self.state / "run" / "containerd"

    @property
    def cni_config(self) -> Path:
        """The folder containerd reads the pod network from."""
        return self.config / "cni"

    @property
    def kubelet_root(self) -> Path:
        """The kubelet's folder: pods' volumes, checkpoints."""
        return self.state / "kubelet"

    @property
    def pod_logs(self) -> Path:
        """What its containers say. A kubelet removes the logs of pods that it does not know."""
        return self.paths.logs / "pods" / self.name

    @property
    def cgroup(self) -> str | None:
        """The control group above its pods'; None for the root. A kubelet removes groups that it does not know."""
        return None if self.index == 0 else f"{network.NAME}-{self.name}"


def existing(paths: Paths) -> list[Node]:
    """The nodes that were ever started in this cluster."""
    names = [path.name for path in paths.nodes.glob("node-*")]
    return [Node(paths, index) for index in sorted(int(name.removeprefix("node-")) for name in names)]


def at_least(paths: Paths, number: int) -> list[Node]:
    """The existing nodes, and as many more as it takes."""
    if not 1 <= number <= MOST:
        raise ClusterError(f"{number} nodes: it must be 1 to {MOST}")
    return [Node(paths, index) for index in range(max(number, len(existing(paths))))]


def named(paths: Paths, name: str) -> Node:
    """The existing node of this name."""
    nodes = existing(paths)
    for node in nodes:
        if node.name == name:
            return node
    known = ", ".join(node.name for node in nodes) or "none"
    raise ClusterError(f"no node is called {name!r}; there are: {known}")
