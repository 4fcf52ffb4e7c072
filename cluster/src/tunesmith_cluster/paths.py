"""Where things are kept: the cache outlives a cluster, the state folder does not."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

GO_MODULES = Path(__file__).resolve().parents[2] / "go"
"""The folder of go.mod and go.sum files that pin every binary (part of the checkout)."""


@dataclass(frozen=True, slots=True)
class Paths:
    """Every file and folder of a cluster, derived from two roots."""

    cache: Path
    """Binaries, a Go toolchain and Python environments; kept by `down`."""
    state: Path
    """Everything that belongs to one cluster; removed by `down`."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Paths:
        """Read TUNESMITH_CACHE and TUNESMITH_CLUSTER_STATE, with their defaults."""
        cache = environ.get("TUNESMITH_CACHE") or "~/.cache/tunesmith"
        state = environ.get("TUNESMITH_CLUSTER_STATE") or "/var/lib/tunesmith-cluster"
        return cls(Path(cache).expanduser().absolute(), Path(state).expanduser().absolute())

    @property
    def envs(self) -> Path:
        """Python virtual environments that every container sees read-only."""
        return self.cache / "envs"

    @property
    def made(self) -> tuple[Path, ...]:
        """The folders in which things are made, and where a killed process leaves halves of them."""
        return (self.cache, self.cache / "bin", self.cache / "console", self.images)

    @property
    def lock(self) -> Path:
        """Held while `up` or `down` runs; in the cache because `down` removes the state folder."""
        return self.cache / "cluster.lock"

    @property
    def bin(self) -> Path:
        """Links to the binaries this cluster runs, for people and their PATH."""
        return self.state / "bin"

    @property
    def pki(self) -> Path:
        """Keys and certificates."""
        return self.state / "pki"

    @property
    def config(self) -> Path:
        """Configuration files of the components."""
        return self.state / "config"

    @property
    def kubeconfigs(self) -> Path:
        """One kubeconfig per component."""
        return self.state / "kubeconfig"

    @property
    def admin_kubeconfig(self) -> Path:
        """The kubeconfig for people and tests."""
        return self.kubeconfigs / "admin.yaml"

    @property
    def logs(self) -> Path:
        """One log per process, and the API server's audit log."""
        return self.state / "log"

    @property
    def pids(self) -> Path:
        """One file per started process."""
        return self.state / "pid"

    @property
    def images(self) -> Path:
        """Where images are made; empty in between."""
        return self.state / "images"

    @property
    def volumes(self) -> Path:
        """The folders behind persistent volumes."""
        return self.state / "volumes"

    @property
    def volume_plugins(self) -> Path:
        """An empty folder: left to themselves the components make one under /usr."""
        return self.state / "volume-plugins"

    @property
    def nodes(self) -> Path:
        """One folder per node."""
        return self.state / "nodes"

    @property
    def base_spec(self) -> Path:
        """The OCI runtime spec that every container starts from."""
        return self.config / "base-spec.json"
