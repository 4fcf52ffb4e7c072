"""The cluster's Go binaries: built once, kept in the cache under the hash of what pins them."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tunesmith_cluster import golang, partials, reasons
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.paths import GO_MODULES, Paths
from tunesmith_cluster.progress import Reporter

KUBERNETES_VERSION = "1.36.3"
HELM_VERSION = "4.2.4"
KUEUE_VERSION = "0.19.2"
KUEUE_CHART = Path("charts/kueue")
LWS_VERSION = "0.9.0"
LWS_CHART = Path("charts/lws")
ARGOCD_VERSION = "3.2.11"
ARGOCD_MANIFESTS = Path("manifests")
_VERSION_PACKAGE = "k8s.io/component-base/version"


@dataclass(frozen=True, slots=True)
class Module:
    """A folder under `cluster/go` and the commands built from it."""

    name: str
    commands: dict[str, str]
    """The binary's name -> its Go package."""
    usual_seconds: int
    """How long a build without any cache takes on two cores; said to the user, nothing else."""
    ldflags: str = "-s -w"
    kept: tuple[str, Path] | None = None
    """A Go module among the pins, and the folder of its source that is kept beside the binaries."""

    @property
    def folder(self) -> Path:
        """Where go.mod and go.sum are."""
        return GO_MODULES / self.name

    def digest(self) -> str:
        """The sha256 of go.mod, go.sum and our own code: the same pins always mean the same binaries."""
        if not self.folder.is_dir():
            raise ClusterError(f"{self.folder} is missing: install tunesmith-cluster from a checkout, as editable")
        sources = [self.folder / "go.mod", self.folder / "go.sum", *sorted(self.folder.glob("*.go"))]
        content = b"".join(path.read_bytes() for path in sources if path.exists())
        return hashlib.sha256(content).hexdigest()


_KUBERNETES_COMMANDS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
)

MODULES = (
    Module(
        name="kubernetes",
        commands={command: f"k8s.io/kubernetes/cmd/{command}" for command in _KUBERNETES_COMMANDS},
        usual_seconds=470,
        # Without these, every component reports v0.0.0 and `helm`'s and clients' version checks fail.
        ldflags=(
            f"-s -w -X {_VERSION_PACKAGE}.gitVersion=v{KUBERNETES_VERSION}"
            f" -X {_VERSION_PACKAGE}.gitMajor={KUBERNETES_VERSION.split('.')[0]}"
            f" -X {_VERSION_PACKAGE}.gitMinor={KUBERNETES_VERSION.split('.')[1]}"
        ),
    ),
    Module("etcd", {"etcd": "go.etcd.io/etcd/server/v3"}, usual_seconds=40),
    Module("coredns", {"coredns": "github.com/coredns/coredns"}, usual_seconds=120),
    Module(
        "local-path-provisioner",
        {"local-path-provisioner": "github.com/rancher/local-path-provisioner"},
        usual_seconds=60,
    ),
    Module("pause", {"pause": "."}, usual_seconds=5),
    Module(
        name="helm",
        commands={"helm": "helm.sh/helm/v4/cmd/helm"},
        usual_seconds=90,
        ldflags=f"-s -w -X helm.sh/helm/v4/internal/version.version=v{HELM_VERSION}",
    ),
)

KUEUE = Module(
    name="kueue",
    commands={"kueue": "sigs.k8s.io/kueue/cmd/kueue"},
    usual_seconds=300,
    ldflags=f"-s -w -X sigs.k8s.io/kueue/pkg/version.GitVersion=v{KUEUE_VERSION}",
    kept=("sigs.k8s.io/kueue", KUEUE_CHART),
)
LWS = Module(
    name="lws",
    commands={"lws": "sigs.k8s.io/lws/cmd"},
    usual_seconds=120,
    ldflags=f"-s -w -X sigs.k8s.io/lws/pkg/version.GitVersion=v{LWS_VERSION}",
    kept=("sigs.k8s.io/lws", LWS_CHART),
)
PODGROUP = Module("podgroup", {"podgroup": "."}, usual_seconds=20)
"""Reads PodGroups with their makers' own Go types."""
SCALEDOBJECT = Module("scaledobject", {"scaledobject": "."}, usual_seconds=100)
"""Reads ScaledObjects with KEDA's own Go types."""
FLUX = Module("flux", {"flux-status": "."}, usual_seconds=100)
"""Tells the status of an object by a Kustomization's health checks, with Flux's own code."""
PROMETHEUS_ADAPTER = Module(
    "prometheus-adapter", {"prometheus-adapter": "sigs.k8s.io/prometheus-adapter/cmd/adapter"}, usual_seconds=120
)
_ARGOCD = "github.com/argoproj/argo-cd/v3"
ARGOCD = Module(
    name="argocd",
    commands={"argocd": f"{_ARGOCD}/cmd"},
    usual_seconds=600,
    ldflags=f"-s -w -X {_ARGOCD}/common.version={ARGOCD_VERSION}",
    kept=(_ARGOCD, ARGOCD_MANIFESTS),
)
"""All of Argo CD's components are one program, which its variable ARGOCD_BINARY_NAME makes one of them."""
EXTRAS = (KUEUE, LWS, PODGROUP, SCALEDOBJECT, FLUX, PROMETHEUS_ADAPTER, ARGOCD)
"""Only built when they are asked for."""

_ALL = (*MODULES, *EXTRAS)


def binary(cache: Path, name: str) -> Path:
    """Where the binary of this name is, or will be once built."""
    for module in _ALL:
        if name in module.commands:
            return _folder(cache, module) / name
    known = ", ".join(sorted(name for module in _ALL for name in module.commands))
    raise ClusterError(f"no binary is called {name!r}; there are: {known}")


def is_built(cache: Path, module: Module) -> bool:
    """Whether all of the module's binaries are in the cache."""
    return _folder(cache, module).is_dir()


def ensure(paths: Paths, modules: Iterable[Module], reporter: Reporter) -> None:
    """Build those that are not built yet, with a Go that is installed if there is none."""
    if not (missing := [module for module in modules if not is_built(paths.cache, module)]):
        return
    go = golang.ensure(paths, reporter)
    for module in missing:
        with reporter.step(f"build {', '.join(module.commands)}", module.usual_seconds):
            build(paths.cache, module, go)


def build(cache: Path, module: Module, go: Path) -> None:
    """Build a module's commands, atomically: the folder appears only when it is complete."""
    target = _folder(cache, module)
    with partials.made(target) as output:
        output.mkdir()
        scratch = output.with_name("scratch")
        scratch.mkdir()
        packages = list(module.commands.values())
        # Several packages at once keep all cores busy, but then Go chooses the names. They are right for
        # Kubernetes, while a single package (Go would call etcd's "server") can be named here.
        destination = f"{output}/" if len(packages) > 1 else str(output / next(iter(module.commands)))
        command = [str(go), "build", "-trimpath", "-ldflags", module.ldflags, "-o", destination, *packages]
        done = subprocess.run(
            command,
            cwd=module.folder,
            # Where Go works: in /tmp, nobody would remove what a killed build leaves.
            env={**golang.environment(go), "GOTMPDIR": str(scratch)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        absent = [name for name in module.commands if not (output / name).is_file()]
        if done.returncode or absent:
            why = reasons.of(done.stdout, output, "the Go module proxy")
            raise ClusterError(f"building {module.name} failed: {why}\n{done.stdout[-3000:]}")
        if module.kept is not None:
            name, folder = module.kept
            shutil.copytree(_source(module, name, go) / folder, output / folder)


def link_all(cache: Path, folder: Path) -> None:
    """Make `folder` hold a link to every binary that is built, so that one PATH entry is enough."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for module in filter(lambda module: is_built(cache, module), _ALL):
        for name in module.commands:
            os.symlink(_folder(cache, module) / name, folder / name)


def _source(module: Module, name: str, go: Path) -> Path:
    """Where Go keeps the source of a Go module that `module` pins."""
    command = [str(go), "list", "-m", "-f", "{{.Dir}}", name]
    done = subprocess.run(
        command, cwd=module.folder, env=golang.environment(go), capture_output=True, text=True, check=False
    )
    if done.returncode or not done.stdout.strip():
        raise ClusterError(f"`go list` does not know where the source of {name} is: {done.stderr.strip()}")
    return Path(done.stdout.strip())


def _folder(cache: Path, module: Module) -> Path:
    return cache / "bin" / module.digest()
