"""The cluster that the quickstart uses: the one of KUBECONFIG; else kind, where Docker is; else the local one."""

from __future__ import annotations

import os
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from tunesmith_cluster import environments, requirements, tools, workloads
from tunesmith_cluster.cluster import Cluster, require_root
from tunesmith_cluster.environments import OPERATOR, ROOT, TRAINER, Installation
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.progress import Reporter
from tunesmith_cluster.quickstart.kubectl import Kubectl
from tunesmith_cluster.workloads import Images, split_tag

KIND_CLUSTER = "tunesmith"
KIND_CONFIG = ROOT / "kind-config.yaml"
KIND_ENGINE = ROOT / "cluster" / "kind" / "engine.Dockerfile"
KIND_STORAGE_PATCH = ROOT / "cluster" / "kind" / "shared-volumes.yaml"


class Target(ABC):
    """A cluster, and how our images get to it."""

    title: str
    services_reachable = False
    """Whether a Service's address can be reached from this machine."""
    trainer_image: str | None = None
    """What stands for the examples' own trainer image; None: they are right as they are."""

    def __init__(self, cluster: Cluster, reporter: Reporter) -> None:
        self.cluster, self.reporter = cluster, reporter

    @property
    @abstractmethod
    def kubeconfig(self) -> Path:
        """How to reach it."""

    @abstractmethod
    def start(self) -> None:
        """Make it run, if that is for us to do."""

    @abstractmethod
    def load_images(self) -> Mapping[str, str]:
        """Make our images available to it; the chart's values that name them."""

    def tool(self, name: str) -> Path:
        """The helm or kubectl to use with it."""
        return tools.find(name, self.cluster.paths, self.reporter)

    @abstractmethod
    def remove(self) -> bool:
        """Remove it as a whole. False: it is not ours, so what was installed has to be removed one by one."""


class Local(Target):
    """The cluster of this package."""

    title = "the local cluster (no KUBECONFIG is set, and Docker or kind is missing)"
    services_reachable = True

    @property
    def kubeconfig(self) -> Path:
        return self.cluster.kubeconfig

    def start(self) -> None:
        # Before minutes are spent. The operator's packages are few: that they can be had shows that the others can.
        require_root()
        self.cluster.require_ports()
        requirements.require(self.cluster.paths, memory=not self.cluster.is_started())
        environments.ensure(self.cluster.paths, OPERATOR, self.reporter)
        # The one compiles, the other downloads: the first time, they take minutes each.
        packages = Installation(self.cluster.paths, TRAINER)
        try:
            self.cluster.up()
            step = self.reporter.step("install the trainer's Python packages", TRAINER.usual_seconds)
            with nullcontext() if packages.is_done() else step:
                packages.wait()
        except BaseException:  # else it would have to be waited for before the error is told
            packages.stop()
            raise

    def load_images(self) -> Mapping[str, str]:
        return workloads.load(self.cluster, reporter=self.reporter).helm_values()

    def tool(self, name: str) -> Path:
        return self.cluster.paths.bin / name  # of the cluster's own version

    def remove(self) -> bool:
        self.cluster.down()
        return True


class Kind(Target):
    """A kind cluster of our own, and images built with Docker."""

    title = f"the kind cluster {KIND_CLUSTER!r} (Docker and kind are here)"

    @property
    def kubeconfig(self) -> Path:
        return self.cluster.paths.cache / "kind.kubeconfig"

    def start(self) -> None:
        kubectl = Kubectl(_kubectl(), self.kubeconfig)  # before minutes are spent
        self.kubeconfig.parent.mkdir(parents=True, exist_ok=True)
        if KIND_CLUSTER in _run("kind", "get", "clusters").split():
            _run("kind", "export", "kubeconfig", f"--name={KIND_CLUSTER}", f"--kubeconfig={self.kubeconfig}")
        else:
            requirements.refuse(*requirements.lacking_memory(_docker_memory()))
            with self.reporter.step("create the kind cluster", usual_seconds=60):
                _run(
                    *("kind", "create", "cluster", f"--name={KIND_CLUSTER}", f"--config={KIND_CONFIG}"),
                    *(f"--kubeconfig={self.kubeconfig}", "--wait=180s"),
                )
        with self.reporter.step("let volumes be shared"):
            _share_volumes(kubectl)

    def load_images(self) -> Mapping[str, str]:
        with self.reporter.step("build the operator's image", usual_seconds=60):
            operator = self._build("tunesmith-operator", ROOT / "operator" / "Dockerfile")
        with self.reporter.step("build the trainer's image", usual_seconds=600):
            trainer = self._build("tunesmith-trainer", ROOT / "trainer-image" / "Dockerfile")
        with self.reporter.step("build the engine's image: vLLM for a CPU", usual_seconds=300):
            engine = self._build("tunesmith-engine", KIND_ENGINE, TRAINER_IMAGE=trainer)
        with self.reporter.step("load the images into kind", usual_seconds=180):
            # Together, since they share layers; also under the name that the examples use.
            names = [operator, trainer, engine, "tunesmith-trainer:dev"]
            _run("kind", "load", "docker-image", f"--name={KIND_CLUSTER}", *names)
        return Images(operator, trainer, engine).helm_values()

    def remove(self) -> bool:
        _run("kind", "delete", "cluster", f"--name={KIND_CLUSTER}", f"--kubeconfig={self.kubeconfig}")
        self.kubeconfig.unlink(missing_ok=True)
        return True

    @staticmethod
    def _build(name: str, dockerfile: Path, **arguments: str) -> str:
        given = [f"--build-arg={key}={value}" for key, value in arguments.items()]
        _run("docker", "build", "--quiet", f"--file={dockerfile}", f"--tag={name}:dev", *given, str(ROOT))
        digest = _run("docker", "image", "inspect", "--format={{.Id}}", f"{name}:dev").strip()
        # New content, new name: the pods are replaced.
        tagged = f"{name}:{digest.removeprefix('sha256:')[:12]}"
        _run("docker", "tag", f"{name}:dev", tagged)
        return tagged


class Given(Target):
    """The cluster of KUBECONFIG. It gets images from registries."""

    title = "the cluster of KUBECONFIG"

    @property
    def kubeconfig(self) -> Path:
        if os.pathsep in os.environ["KUBECONFIG"]:
            raise ClusterError("KUBECONFIG names several files: make one of them with `kubectl config view --flatten`")
        return Path(os.environ["KUBECONFIG"])

    def start(self) -> None:
        try:
            Kubectl(_kubectl(), self.kubeconfig)("version", "--request-timeout=10s")
        except ClusterError as error:
            raise ClusterError(
                f"the cluster of KUBECONFIG ({self.kubeconfig}) cannot be used: mend that, or unset KUBECONFIG to use "
                f"another cluster. {error}"
            ) from error

    def load_images(self) -> Mapping[str, str]:
        self.trainer_image = os.environ.get("TUNESMITH_TRAINER_IMAGE")
        return image_values(os.environ)

    def remove(self) -> bool:
        return False


def image_values(environ: Mapping[str, str]) -> dict[str, str]:
    """The chart's values for TUNESMITH_OPERATOR_IMAGE, _TRAINER_IMAGE and _ENGINE_IMAGE, those that are set."""
    values: dict[str, str] = {}
    for key in ("operator", "trainer", "engine"):
        name, _, digest = environ.get(f"TUNESMITH_{key.upper()}_IMAGE", "").partition("@")
        if name:
            values[f"{key}Image.repository"], values[f"{key}Image.tag"] = split_tag(name)
            values[f"{key}Image.digest"] = digest
    return values


def choose(reporter: Reporter, environ: Mapping[str, str] = os.environ) -> Target:
    """The cluster to use."""
    cluster = Cluster(reporter=reporter)
    given = environ.get("KUBECONFIG")
    if given and Path(given) != cluster.kubeconfig:
        return Given(cluster, reporter)
    if not given and shutil.which("kind") and _docker_answers():
        return Kind(cluster, reporter)
    return Local(cluster, reporter)


def _share_volumes(kubectl: Kubectl) -> None:
    storage = "--namespace=local-path-storage"
    patch = f"--patch-file={KIND_STORAGE_PATCH}"
    said = kubectl("patch", "configmap", "local-path-config", storage, "--type=merge", patch)
    if "no change" not in said:
        # It would see the change by itself, but only a minute later.
        kubectl("rollout", "restart", "deployment/local-path-provisioner", storage)
        kubectl("rollout", "status", "deployment/local-path-provisioner", storage, "--timeout=120s")


def _docker_answers() -> bool:
    docker = shutil.which("docker")
    return docker is not None and subprocess.run([docker, "info"], capture_output=True, check=False).returncode == 0


def _docker_memory() -> float:
    """All that containers can have, in bytes: on a Mac, for example, that of a virtual machine."""
    return float(_run("docker", "info", "--format={{.MemTotal}}"))


def _kubectl() -> Path:
    found = tools.own("kubectl")
    if found is None:
        raise ClusterError("kubectl is not on PATH: install it, or set TUNESMITH_KUBECTL to it, to use this cluster")
    return found


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"`{' '.join(command)}` failed:\n{(done.stderr or done.stdout).strip()[-3000:]}")
    return done.stdout
