"""The control groups above the pods'."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tunesmith_cluster import network

_ROOT = Path("/sys/fs/cgroup")


def create(name: str) -> None:
    """Create a control group in every hierarchy, as the kubelet wants to find its root."""
    for root in _hierarchies():
        (root / name).mkdir(exist_ok=True)
    if (_ROOT / "cgroup.controllers").exists():  # version 2: what is not passed on, the group below lacks
        for controller in (_ROOT / "cgroup.controllers").read_text(encoding="ascii").split():
            with contextlib.suppress(OSError):  # the kubelet says which one it misses, if it needs it
                (_ROOT / "cgroup.subtree_control").write_text(f"+{controller}", encoding="ascii")


def remove() -> None:
    """Remove the kubelets' empty control groups."""
    for root in _hierarchies():
        for top in (*root.glob("kubepods"), *root.glob(f"{network.NAME}-node-*")):
            for folder, _, _ in os.walk(top, topdown=False):
                try:
                    Path(folder).rmdir()
                except OSError:
                    continue  # somebody else's processes are in it


def _hierarchies() -> list[Path]:
    """The one of version 2, or the many of version 1."""
    if (_ROOT / "cgroup.controllers").exists():
        return [_ROOT]
    return sorted(path.parent for path in _ROOT.glob("*/cgroup.procs") if not path.parent.is_symlink())
