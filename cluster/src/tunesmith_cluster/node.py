"""The node's configuration: containerd, the pod network, the kubelet. Everything here only renders text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tunesmith_cluster import credentials, network
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.packages import CNI_PLUGINS
from tunesmith_cluster.paths import Paths

PAUSE_IMAGE = "localhost/pause:1"
KUBELET_HEALTH_PORT = 10248

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


def containerd_config(paths: Paths) -> str:
    """The containerd daemon's config.toml."""
    return f"""\
version = 2
root = "{paths.state}/containerd"
state = "{paths.containerd_run}"

[grpc]
  address = "{paths.containerd_socket}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{paths.state}/containerd/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # A machine without CAP_SYS_RESOURCE refuses a sandbox's score of -998, and then no pod starts.
  restrict_oom_score_adj = true

  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{paths.cni_config}"

  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    base_runtime_spec = "{paths.base_spec}"

    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      Root = "{paths.state}/run/runc"
"""


def cni_config(paths: Paths) -> str:
    """The pod network: a bridge whose own address is the node's."""
    ipam = {
        "type": "host-local",
        "dataDir": str(paths.state / "cni"),
        "ranges": [[{"subnet": network.POD_CIDR, "gateway": network.NODE_IP}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {
        "type": "bridge",
        "bridge": network.BRIDGE,
        "isGateway": True,
        "ipMasq": True,
        "hairpinMode": True,  # a pod can reach itself through its Service
        "ipam": ipam,
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return json.dumps({"cniVersion": "1.0.0", "name": network.NETWORK, "plugins": [bridge, portmap]}, indent=2)


def kubelet_config(paths: Paths) -> str:
    """A KubeletConfiguration."""
    pair = credentials.pair(paths, "kubelet")
    return yaml.safe_dump(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": network.NODE_IP,
            "healthzBindAddress": "127.0.0.1",
            "healthzPort": KUBELET_HEALTH_PORT,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(credentials.authority(paths).certificate)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(pair.certificate),
            "tlsPrivateKeyFile": str(pair.key),
            "cgroupDriver": "cgroupfs",
            "failCgroupV1": False,  # some machines still mount cgroup v1
            "failSwapOn": False,
            "clusterDNS": [network.NODE_IP],
            "clusterDomain": "cluster.local",
            "resolvConf": str(paths.config / "resolv.conf"),
            "containerRuntimeEndpoint": f"unix://{paths.containerd_socket}",
            "podLogsDir": str(paths.logs / "pods"),
            "volumePluginDir": str(paths.volume_plugins),
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


def files(paths: Paths) -> dict[Path, str]:
    """Every configuration file of the node but the base spec, which needs containerd's own default."""
    return {
        paths.config / "containerd.toml": containerd_config(paths),
        paths.cni_config / "10-tunesmith.conflist": cni_config(paths),
        paths.config / "kubelet.yaml": kubelet_config(paths),
        paths.config / "resolv.conf": "",  # pods ask cluster DNS and nobody else
    }
