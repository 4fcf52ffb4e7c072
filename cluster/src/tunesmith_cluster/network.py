"""The pod network: its addresses, its bridge, and removing every trace of it from the kernel."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

from tunesmith_cluster.errors import ClusterError

NETWORK = "tunesmith"
BRIDGE = "tunesmith0"
POD_CIDR = "10.222.0.0/16"
NODE_IP = "10.222.0.1"
"""The bridge's own address. Pods reach the API server and DNS here; nothing outside this machine can."""
SERVICE_CIDR = "10.223.0.0/16"
API_SERVICE_IP = "10.223.0.1"
API_PORT = 6443
API_URL = f"https://{NODE_IP}:{API_PORT}"

_SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    # Without it the answer of a pod on the same bridge bypasses the Service's address translation.
    "net/bridge/bridge-nf-call-iptables": "1",
}
_PROC_SYS = Path("/proc/sys")


def create(saved_sysctls: Path) -> None:
    """Create the bridge and set the kernel's switches; what they were is kept in `saved_sysctls`."""
    if not Path(f"/sys/class/net/{BRIDGE}").exists():
        _run("ip", "link", "add", BRIDGE, "type", "bridge")
        _run("ip", "address", "add", f"{NODE_IP}/16", "dev", BRIDGE)
    _run("ip", "link", "set", BRIDGE, "up")
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", "-q", "br_netfilter"], check=False)  # built into some kernels: may fail
    if not saved_sysctls.exists():
        saved_sysctls.write_text(json.dumps({name: _read_sysctl(name) for name in _SYSCTLS}), encoding="utf-8")
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
    members = Path(f"/sys/class/net/{BRIDGE}/brif")
    for link in sorted(members.iterdir()) if members.is_dir() else []:
        subprocess.run(["ip", "link", "delete", link.name], capture_output=True, check=False)
    subprocess.run(["ip", "link", "delete", BRIDGE], capture_output=True, check=False)
    for family in ("iptables", "ip6tables"):
        _remove_rules(family)
    if saved_sysctls.exists():
        for name, value in json.loads(saved_sysctls.read_text(encoding="utf-8")).items():
            if value is not None and _read_sysctl(name) not in (None, value):
                (_PROC_SYS / name).write_text(value, encoding="ascii")


def without_cluster_rules(saved: str) -> str:
    """The output of iptables-save less the chains of Kubernetes and CNI, and the rules that name one."""
    # A chain's own line is ":KUBE-SERVICES - [0:0]"; a rule names chains after -A and -j.
    mentions = re.compile(r"^:(?:KUBE|CNI)-|(?:^|\s)-[Ajg] (?:KUBE|CNI)-")
    return "".join(line for line in saved.splitlines(keepends=True) if not mentions.search(line))


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


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
