"""The pod network: its addresses, its bridges, and removing every trace of it from the kernel."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

from tunesmith_cluster import files
from tunesmith_cluster.errors import ClusterError

NAME = "tunesmith"
POD_CIDR = "10.222.0.0/16"
"""All pods' addresses; each node has a part of it."""
HOST_IP = "10.222.0.1"
"""The first bridge's own address. Pods reach the API server and DNS here; nothing outside this machine can."""
SERVICE_CIDR = "10.223.0.0/16"
API_SERVICE_IP = "10.223.0.1"
API_PORT = 6443
API_URL = f"https://{HOST_IP}:{API_PORT}"

_SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    # Without it the answer of a pod on the same bridge bypasses the Service's address translation.
    "net/bridge/bridge-nf-call-iptables": "1",
}
_PROC_SYS = Path("/proc/sys")
_LINKS = Path("/sys/class/net")
_CHAIN = "TUNESMITH-POSTROUTING"


def bridge(index: int) -> str:
    """The link that the pods of the node with this number are on."""
    return f"{NAME}{index}"


def node_address(index: int) -> str:
    """The address of that bridge, which is the node's."""
    return f"10.222.{index}.1"


def node_cidr(index: int) -> str:
    """The addresses of that node's pods."""
    return f"10.222.{index}.0/24"


def create(saved_sysctls: Path, nodes: int) -> None:
    """Create the bridges and set the kernel's switches; what they were is kept in `saved_sysctls`."""
    for index in range(nodes):
        _add_bridge(index)
    _hide_pods_outside()
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", "-q", "br_netfilter"], check=False)  # built into some kernels: may fail
    if not saved_sysctls.exists():
        files.write(saved_sysctls, json.dumps({name: _read_sysctl(name) for name in _SYSCTLS}).encode())
    for name, value in _SYSCTLS.items():
        try:
            if _read_sysctl(name) != value:
                (_PROC_SYS / name).write_text(value, encoding="ascii")
        except OSError as error:
            raise ClusterError(
                f"the kernel refuses {name} = {value} ({error}); pods need it to be reachable"
            ) from error


def remove(saved_sysctls: Path) -> None:
    """Undo `create`, and remove the links and packet filter rules that Kubernetes made since."""
    for link in sorted(path for path in _LINKS.glob(f"{NAME}[0-9]*") if (path / "bridge").is_dir()):
        for member in sorted((link / "brif").iterdir()):
            subprocess.run(["ip", "link", "delete", member.name], capture_output=True, check=False)
        subprocess.run(["ip", "link", "delete", link.name], capture_output=True, check=False)
    for family in ("iptables", "ip6tables"):
        _remove_rules(family)
    if saved_sysctls.exists():
        for name, value in json.loads(saved_sysctls.read_text(encoding="utf-8")).items():
            if value is not None and _read_sysctl(name) not in (None, value):
                (_PROC_SYS / name).write_text(value, encoding="ascii")


def without_cluster_rules(saved: str) -> str:
    """The output of iptables-save less the chains of Kubernetes, CNI and ours, and the rules that name one."""
    # A chain's own line is ":KUBE-SERVICES - [0:0]"; a rule names chains after -A and -j.
    mentions = re.compile(r"^:(?:KUBE|CNI|TUNESMITH)-|(?:^|\s)-[Ajg] (?:KUBE|CNI|TUNESMITH)-")
    return "".join(line for line in saved.splitlines(keepends=True) if not mentions.search(line))


def _add_bridge(index: int) -> None:
    if not (_LINKS / bridge(index)).exists():
        _run("ip", "link", "add", bridge(index), "type", "bridge")
    _run("ip", "address", "replace", f"{node_address(index)}/24", "dev", bridge(index))
    _run("ip", "link", "set", bridge(index), "up")


def _hide_pods_outside() -> None:
    """Give what pods send elsewhere this machine's address. CNI's own rule would hide nodes' pods from each other."""
    nat = ("iptables", "--wait", "--table", "nat")
    if not _succeeds(*nat, "--list", _CHAIN, "--numeric"):
        _run(*nat, "--new-chain", _CHAIN)
    for rule in (
        (_CHAIN, "--source", POD_CIDR, "!", "--destination", POD_CIDR, "--jump", "MASQUERADE"),
        ("POSTROUTING", "--jump", _CHAIN),
    ):
        if not _succeeds(*nat, "--check", *rule):
            _run(*nat, "--append", *rule)


def _remove_rules(family: str) -> None:
    save, restore = shutil.which(f"{family}-save"), shutil.which(f"{family}-restore")
    if save is None or restore is None:
        return
    saved = subprocess.run([save, "-c"], capture_output=True, text=True, check=False).stdout
    wanted = without_cluster_rules(saved)
    if wanted != saved:
        done = subprocess.run([restore, "-c"], input=wanted, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"{restore} did not accept the rules less the cluster's: {done.stderr.strip()}")


def _read_sysctl(name: str) -> str | None:
    try:
        return (_PROC_SYS / name).read_text(encoding="ascii").strip()
    except OSError:
        return None


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
