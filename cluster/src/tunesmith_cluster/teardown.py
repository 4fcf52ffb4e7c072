"""Leaving nothing behind: containers, mounts, network namespaces, control groups, and the state folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tunesmith_cluster import cgroups, network, nodes, processes
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.nodes import Node
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.probes import is_listened_to
from tunesmith_cluster.processes import Identity

_CNI_CACHE = Path("/var/lib/cni")
_LOG_LINKS = Path("/var/log/containers")
_KUBELET_SOCKET = Path("/var/lib/kubelet/device-plugins/kubelet.sock")
_NETWORK_NAMESPACES = Path("/run/netns")
_SHIM_SOCKETS = Path("/run/containerd/s")
_DAEMONS = {
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "coredns",
    "local-path-provisioner",
    "containerd",
    "kueue",
    "lws",
}


def kill_strays(paths: Paths) -> None:
    """End the cluster's processes whose pid file was lost."""
    for pid, (_, command) in processes.running().items():
        identity = Identity.of(pid)
        if identity is not None and is_stray(command, paths):
            processes.end(identity, grace=5)


def is_stray(command: list[str], paths: Paths) -> bool:
    """Whether a command line is that of a daemon of this cluster."""
    return (
        bool(command)
        and os.path.basename(command[0]) in _DAEMONS
        and any(f"{paths.state}/" in argument for argument in command[1:])
    )


def kill_containers(node: Node) -> None:
    """Kill every container of a node and the shim that watches it; its containerd must have ended before."""
    table = processes.running()
    shims = {
        pid
        for pid, (_, command) in table.items()
        if command and command[0].endswith("containerd-shim-runc-v2") and str(node.containerd_socket) in command
    }
    # The shims first: they would report to containerd, which is gone, and wait for it.
    doomed = [Identity.of(pid) for pid in [*shims, *(processes.descendants(shims, table) - shims)]]
    alive = [identity for identity in doomed if identity is not None]
    for identity in alive:
        identity.send(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while any(identity.is_alive() for identity in alive):
        if time.monotonic() > deadline:
            left = ", ".join(str(identity.pid) for identity in alive if identity.is_alive())
            raise ClusterError(f"the container processes {left} do not end; see `ps -fp` for what they wait for")
        time.sleep(0.02)
    for address in node.containerd_run.glob("io.containerd.runtime.v2.task/*/*/address"):
        socket = Path(address.read_text(encoding="utf-8").strip().removeprefix("unix://"))
        if socket.parent == _SHIM_SOCKETS:
            socket.unlink(missing_ok=True)


def remove_pod_networks(node: Node) -> None:
    """Remove the network namespaces of a node's pods, and with them the pods' links."""
    for namespace in sorted(_network_namespaces(node)):
        _unmount(namespace)
        Path(namespace).unlink(missing_ok=True)


def remove_network(paths: Paths) -> None:
    """Remove the pods' network namespaces, the bridges, and the packet filter rules."""
    for node in nodes.existing(paths):
        remove_pod_networks(node)
    network.remove(paths.state / "sysctls.json")


def remove_files(paths: Paths) -> None:
    """Unmount and delete the state folder, and what the kubelet, containerd and CNI keep elsewhere."""
    for node in nodes.existing(paths):
        for path in _cni_results(node):
            path.unlink(missing_ok=True)
    for mount in mounts_under(paths.state, Path("/proc/self/mountinfo").read_text(encoding="utf-8")):
        _unmount(mount)
    for link in _LOG_LINKS.glob("*.log"):
        if link.is_symlink() and os.readlink(link).startswith(f"{paths.state}/"):
            link.unlink()
    left = mounts_under(paths.state, Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    if left:  # deleting now could delete what is mounted there
        raise ClusterError(f"still mounted, so nothing was deleted: {', '.join(left)}; unmount it and run `down` again")
    cgroups.remove()
    shutil.rmtree(paths.state, ignore_errors=True)
    if not is_listened_to(_KUBELET_SOCKET):  # else another kubelet's
        _KUBELET_SOCKET.unlink(missing_ok=True)
    _remove_if_empty(
        _KUBELET_SOCKET.parent,
        _KUBELET_SOCKET.parent.parent,
        _CNI_CACHE / "results",
        _CNI_CACHE,
        _LOG_LINKS,
        _SHIM_SOCKETS,
        _SHIM_SOCKETS.parent,
        _NETWORK_NAMESPACES,
    )


def mounts_under(folder: Path, mountinfo: str) -> list[str]:
    """The mount points in or at `folder`, the innermost first, out of the text of /proc/self/mountinfo."""
    points = [_unescape(line.split()[4]) for line in mountinfo.splitlines()]
    inside = {point for point in points if Path(point).is_relative_to(folder)}
    return sorted(inside, key=lambda point: (-point.count("/"), point))


def _network_namespaces(node: Node) -> set[str]:
    """The files of the pods' network namespaces, as the container bundles and CNI's results name them."""
    found: set[str] = set()
    for bundle in node.containerd_run.glob("io.containerd.runtime.v2.task/*/*/config.json"):
        for namespace in _read_json(bundle).get("linux", {}).get("namespaces", []):
            if namespace.get("type") == "network" and "path" in namespace:
                found.add(namespace["path"])
    for path in _cni_results(node):
        for interface in _read_json(path).get("result", {}).get("interfaces", []):
            if interface.get("sandbox"):
                found.add(interface["sandbox"])
    # Never a path such as /proc/1/ns/net, which is how a host-network pod would be described.
    return {path for path in found if "/netns/cni-" in path}


def _cni_results(node: Node) -> Iterable[Path]:
    """What CNI's library remembers of a node's pods: the files of its network and of their loopbacks."""
    results = _CNI_CACHE / "results"
    ours = list(results.glob(f"{node.bridge}-*"))
    containers = {path.name.removeprefix(f"{node.bridge}-").rpartition("-")[0] for path in ours}
    return [
        *ours,
        *(path for path in results.glob("cni-loopback-*-lo") if path.name.split("-")[2] in containers),
    ]


def _remove_if_empty(*folders: Path) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            continue  # absent, or somebody else's


def _unmount(point: str) -> None:
    done = subprocess.run(["umount", point], capture_output=True, text=True, check=False)
    if done.returncode and os.path.ismount(point):
        # Busy: detach it now, the kernel lets go of it when the last user does.
        subprocess.run(["umount", "--lazy", point], capture_output=True, check=False)


def _unescape(point: str) -> str:
    """Undo mountinfo's octal escapes."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        point = point.replace(code, character)
    return point


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content
