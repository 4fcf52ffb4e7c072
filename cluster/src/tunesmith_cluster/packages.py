"""The Debian packages the node needs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tunesmith_cluster.errors import ClusterError

CNI_PLUGINS = Path("/usr/lib/cni")

# What shows that a package is there -> the package. Looking for the program rather than asking dpkg lets a
# machine that has, say, Docker's containerd.io keep it.
_NEEDED = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "mount": "mount",
    str(CNI_PLUGINS / "bridge"): "containernetworking-plugins",
}


def missing() -> list[str]:
    """The packages that have to be installed, sorted."""
    return sorted({package for program, package in _NEEDED.items() if shutil.which(program) is None})


def install(packages: list[str]) -> None:
    """Install the given packages with apt-get."""
    if shutil.which("apt-get") is None:
        raise ClusterError(f"this machine has no apt-get: install {' '.join(packages)} yourself, then run `up` again")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "-q"],
        ["apt-get", "install", "-qy", "--no-install-recommends", *packages],
    ):
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        if done.returncode:
            raise ClusterError(f"`{' '.join(command)}` failed:\n{done.stdout[-2000:]}")
