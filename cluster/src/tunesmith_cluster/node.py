"""A node's configuration and processes: containerd, the pod network, the kubelet. Everything here only renders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tunesmith_cluster import build, credentials, network, probes
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.nodes import Node
from tunesmith_cluster.packages import CNI_PLUGINS
from tunesmith_cluster.processes import Service

PAUSE_IMAGE = "localhost/pause:1"

_KUBELET_PORT, _HEALTH_PORT = 10250, 10248
_LEASE_SECONDS = 12
"""A kubelet renews its lease after a quarter of it; see `controlplane.NODE_GRACE_SECONDS`."""

HOST_USERLAND = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/etc/ssl",
    "/etc/alternatives",
    "/etc/ld.so.cache",
)
"""What every container sees of this machine, read-only: thus an image holds nothing but its own files."""


def shown_in_containers(envs: Path) -> list[str]:
    """The paths that are the same, read-only, inside every container as outside."""
    interpreter = Path(sys.base_prefix)
    extra = [str(envs)]
    if not interpreter.is_relative_to("/usr"):
        # Both names: a virtual environment's links may use the one or the other.
        extra += [str(interpreter), str(interpreter.resolve())]
    return list(dict.fromkeys([*HOST_USERLAND, *extra]))


def default_runtime_spec() -> dict[str, Any]:
    """The runtime spec containerd itself would start from."""
    done = subprocess.run(["ctr", "oci", "spec"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"`ctr oci spec` failed: {done.stderr.strip()}")
    spec: dict[str, Any] = json.loads(done.stdout)
    return spec


def base_runtime_spec(
    default: Mapping[str, Any], shown: Sequence[str], exists: Callable[[str], bool] = os.path.exists
) -> dict[str, Any]:
    """The default spec plus the read-only mounts of the given paths."""
    mounts = [
        {"destination": path, "type": "bind", "source": os.path.realpath(path), "options": ["rbind", "ro"]}
        for path in shown
        if exists(path)
    ]
    # Without the default's rlimits, which would allow 1024 open files, a container gets containerd's own.
    process = {key: value for key, value in default["process"].items() if key != "rlimits"}
    return {**default, "process": process, "mounts": [*default["mounts"], *mounts]}


def containerd_config(node: Node) -> str:
    """The containerd daemon's config.toml."""
    return f"""\
version = 2
root = "{node.state}/containerd"
state = "{node.containerd_run}"

[grpc]
  address = "{node.containerd_socket}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{node.state}/containerd/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # A machine without CAP_SYS_RESOURCE refuses a sandbox's score of -998, and then no pod starts.
  restrict_oom_score_adj = true

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{node.cni_config}"

  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    base_runtime_spec = "{node.paths.base_spec}"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      Root = "{node.state}/run/runc"
"""


def cni_config(node: Node) -> str:
    """The pod network: a bridge whose own address is the node's."""
    ipam = {
        "type": "host-local",
        "dataDir": str(node.state / "cni"),
        "ranges": [[{"subnet": node.pod_cidr, "gateway": node.address}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {
        "type": "bridge",
        "bridge": node.bridge,
        "isGateway": True,
        "hairpinMode": True,  # a pod can reach itself through its Service
        "ipam": ipam,
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return json.dumps({"cniVersion": "1.0.0", "name": node.bridge, "plugins": [bridge, portmap]}, indent=2)


def kubelet_config(node: Node) -> str:
    """A KubeletConfiguration."""
    pair = credentials.pair(node.paths, node.kubelet_service)
    return yaml.safe_dump(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": node.address,
            "healthzBindAddress": node.address,
            "healthzPort": _HEALTH_PORT,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(credentials.authority(node.paths).certificate)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(pair.certificate),
            "tlsPrivateKeyFile": str(pair.key),
            "nodeLeaseDurationSeconds": _LEASE_SECONDS,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{node.cgroup or ''}",
            "failCgroupV1": False,  # some machines still mount cgroup v1
            "failSwapOn": False,
            "clusterDNS": [network.HOST_IP],
            "clusterDomain": "cluster.local",
            "resolvConf": str(node.config / "resolv.conf"),
            "containerRuntimeEndpoint": f"unix://{node.containerd_socket}",
            "podLogsDir": str(node.pod_logs),
            "volumePluginDir": str(node.paths.volume_plugins),
            "containerLogMaxSize": "10Mi",
            "maxPods": 110,
            "serializeImagePulls": False,
            # Images cannot be pulled again: only a full disk may cost one, and only a full machine a pod.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "1%",
                "imagefs.available": "1%",
            },
        },
        sort_keys=False,
    )


def files(node: Node) -> dict[Path, str]:
    """Every configuration file of the node but the base spec, which all nodes share."""
    return {
        node.config / "containerd.toml": containerd_config(node),
        node.cni_config / "10-tunesmith.conflist": cni_config(node),
        node.config / "kubelet.yaml": kubelet_config(node),
        node.config / "resolv.conf": "",  # pods ask cluster DNS and nobody else
    }


def services(node: Node) -> list[Service]:
    """The node's processes, in the order in which they start."""
    return [_containerd(node), _kubelet(node)]


def _containerd(node: Node) -> Service:
    command = ["containerd", "--config", str(node.config / "containerd.toml")]
    return Service(node.containerd_service, command, probes.accepts(node.containerd_socket))


def _kubelet(node: Node) -> Service:
    command = [
        str(build.binary(node.paths.cache, "kubelet")),
        f"--config={node.config / 'kubelet.yaml'}",
        f"--kubeconfig={credentials.kubeconfig(node.paths, node.kubelet_service)}",
        f"--root-dir={node.kubelet_root}",
        f"--cert-dir={node.kubelet_root / 'pki'}",
        f"--hostname-override={node.name}",
        f"--node-ip={node.address}",
        # As a cloud would: what spreads over zones must not find as many as there are nodes.
        "--node-labels=topology.kubernetes.io/region=local,topology.kubernetes.io/zone=local",
    ]
    ready = probes.answers(f"http://{node.address}:{_HEALTH_PORT}/healthz")
    listens = [(node.address, _KUBELET_PORT), (node.address, _HEALTH_PORT)]
    return Service(node.kubelet_service, command, ready, listens=listens)
