"""What the quickstart needs of this machine, looked at before minutes are spent."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith_cluster import build, disk, environments
from tunesmith_cluster.environments import TRAINER
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.paths import Paths

MEMORY = 10e9
"""Two trainings of 3 GB, an engine of 2.8 GB, and the cluster, at the same time."""
_SOURCES, _OBJECTS, _BINARIES, _PACKAGES, _VOLUMES = 3e9, 6.5e9, 0.8e9, 8.5e9, 3e9
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}
"""Their numbers, as in linux/capability.h: without them there is no pod network, and nothing is mounted."""


@dataclass(frozen=True, slots=True)
class Need:
    """Room that is still needed."""

    path: Path
    size: float
    what: str


def require(paths: Paths, *, memory: bool) -> None:
    """Raise ClusterError with all that is lacking. `memory`: whether that is looked at, too."""
    refuse(
        *lacking_rights(Path("/proc/self/status").read_text(encoding="utf-8")),
        *(lacking_memory(available_memory()) if memory else []),
        *lacking_room(needs(paths, os.environ), disk.free, lambda path: os.stat(disk.existing(path)).st_dev),
    )


def refuse(*lacking: str) -> None:
    """Raise ClusterError with all of these sentences, if there are any."""
    if lacking:
        raise ClusterError("this machine lacks what is needed:\n" + "\n".join(f"- {each}" for each in lacking))


def needs(paths: Paths, environ: Mapping[str, str]) -> list[Need]:
    """The room for what is not there yet."""
    found = []
    whole = sum(module.usual_seconds for module in build.MODULES)
    share = sum(each.usual_seconds for each in build.MODULES if not build.is_built(paths.cache, each)) / whole
    if share:
        go = [("GOMODCACHE", _SOURCES), ("GOCACHE", _OBJECTS)]
        found += [Need(Path(environ.get(name) or Path.home()), size * share, "Go's caches") for name, size in go]
        found.append(Need(paths.cache, _BINARIES * share, "Kubernetes"))
    if not (environments.folder(paths, TRAINER) / environments.DONE).exists():
        found.append(Need(paths.cache, _PACKAGES, "the trainer's Python packages"))
    if not paths.volumes.exists():
        found.append(Need(paths.state, _VOLUMES, "models and checkpoints"))
    return found


def lacking_room(needs: Iterable[Need], free: Callable[[Path], float], disk_of: Callable[[Path], object]) -> list[str]:
    """A sentence for each disk that has too little room for all that it has to take."""
    disks: dict[object, list[Need]] = {}
    for need in needs:
        disks.setdefault(disk_of(need.path), []).append(need)
    return [_too_full(each, free(each[0].path)) for each in disks.values() if free(each[0].path) < _sum(each)]


def lacking_memory(available: float) -> list[str]:
    """A sentence if there is too little."""
    if available >= MEMORY:
        return []
    return [
        f"memory: {disk.size(available)} are available, and trainings and engines take {disk.size(MEMORY)} at the same "
        "time: end other programs, or use a machine with 16 GB"
    ]


def lacking_rights(status: str) -> list[str]:
    """A sentence if root is none that may do what a node does, by the text of /proc/self/status."""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    held = int(match[1], 16) if match else -1
    missing = [name for name, number in _CAPABILITIES.items() if not held >> number & 1]
    if not missing:
        return []
    return [
        f"rights: root has no {' and no '.join(missing)} here, as in a container: run this on the machine itself, or "
        "in a privileged container"
    ]


def available_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """How many bytes programs can still have; in a container no more than its limit."""
    meminfo = (proc / "meminfo").read_text(encoding="ascii")
    available = next(int(line.split()[1]) * 1024 for line in meminfo.splitlines() if line.startswith("MemAvailable:"))
    limits = (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes")
    said = [limit.read_text(encoding="ascii").strip() for limit in limits if limit.exists()]
    return min([available, *(int(text) for text in said if text != "max")])


def _too_full(needs: Sequence[Need], free: float) -> str:
    sizes: dict[str, float] = {}
    for need in needs:
        sizes[need.what] = sizes.get(need.what, 0) + need.size
    what = ", ".join(f"{disk.size(number)} for {name}" for name, number in sizes.items())
    folders = " and ".join(dict.fromkeys(str(need.path) for need in needs))
    return (
        f"room on the disk of {folders}: {disk.size(free)} are free, and {disk.size(_sum(needs))} are needed ({what}): "
        "make room, or choose another disk by TUNESMITH_CACHE, TUNESMITH_CLUSTER_STATE, GOCACHE and GOMODCACHE"
    )


def _sum(needs: Iterable[Need]) -> float:
    return sum(need.size for need in needs)
