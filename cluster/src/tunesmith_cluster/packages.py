"""The Debian packages the node needs, the libraries that containers find in its /usr, and packages only unpacked."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tunesmith_cluster import partials, reasons
from tunesmith_cluster.errors import ClusterError

CNI_PLUGINS = Path("/usr/lib/cni")
LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")

# What shows that a package is there -> the package. Looking for the file rather than asking dpkg lets a
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
    # Without them vLLM's kernels for CPUs cannot be loaded, and its wheel does not bring them.
    str(LIBRARIES / "libnuma.so.1"): "libnuma1",
    str(LIBRARIES / "libgomp.so.1"): "libgomp1",
}


def missing() -> list[str]:
    """The packages that have to be installed, sorted."""
    return sorted(
        {
            package
            for sign, package in _NEEDED.items()
            if not (Path(sign).is_file() if sign.startswith("/") else shutil.which(sign))
        }
    )


def install(packages: list[str]) -> None:
    """Install the given packages with apt-get."""
    if shutil.which("apt-get") is None:
        raise ClusterError(f"this machine has no apt-get: install {' '.join(packages)} yourself, then try again")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    # Where it reaches nothing, it warns and succeeds; but what is in older lists can still be installed.
    warned = _run(["apt-get", "update", "-q"], environment=environment)
    _run(["apt-get", "install", "-qy", "--no-install-recommends", *packages], environment=environment, before=warned)


def unpacked(cache: Path, packages: Sequence[str]) -> Path:
    """A folder of the cache with the files of the packages. They are not installed: that would start services."""
    folder = cache / packages[0]
    if folder.exists():
        return folder
    if shutil.which("apt-get") is None:
        raise ClusterError(f"this machine has no apt-get: install {' '.join(packages)} yourself")
    with partials.made(folder) as files:
        _run(["apt-get", "download", *packages], folder=files.parent)
        for package in files.parent.glob("*.deb"):
            _run(["dpkg-deb", "-x", str(package), str(files)])
    return folder


def _run(
    command: Sequence[str], folder: Path | None = None, environment: dict[str, str] | None = None, before: str = ""
) -> str:
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    said = before + done.stdout
    if done.returncode:
        why = reasons.of(said, folder or Path("/usr"), "Debian's package mirror")
        raise ClusterError(f"`{' '.join(command)}` failed: {why}\n{said[-2000:]}")
    return said
