"""The cluster as one object: up, down, status, and what tests need of it."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tunesmith_cluster import (
    addons,
    build,
    controlplane,
    credentials,
    golang,
    images,
    network,
    node,
    packages,
    ports,
    processes,
    teardown,
)
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.processes import Service, Supervisor
from tunesmith_cluster.progress import Reporter, Silent


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One process of the cluster."""

    name: str
    pid: int | None
    """None when it does not run."""
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Status:
    """How the cluster is."""

    processes: Sequence[ProcessStatus]
    node_ready: bool

    @property
    def is_well(self) -> bool:
        """Whether all processes run and the node is ready."""
        return self.node_ready and all(process.pid is not None for process in self.processes)


class Cluster:
    """A single-node Kubernetes made of processes on this machine. Needs root."""

    def __init__(self, paths: Paths | None = None, reporter: Reporter | None = None) -> None:
        self.paths = paths or Paths.from_environment()
        self._reporter = reporter or Silent()
        self._supervisor = Supervisor(self.paths.pids, self.paths.logs)

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.paths.admin_kubeconfig

    def binary(self, name: str) -> Path:
        """The path of a binary, such as kubectl or helm, that `up` has built."""
        return build.binary(self.paths.cache, name)

    def up(self) -> None:
        """Build, install and start what is missing; what is there already is not touched."""
        _require_root()
        with self._locked():
            self._build()
            if self.status().is_well:
                self._reporter.say("the cluster is up already")
                return
            services = controlplane.services(self.paths)
            to_start = [service for service in services if not self._supervisor.is_alive(service.name)]
            self._require_startable(to_start)
            self._configure()
            self._start(services, to_start)

    def down(self) -> None:
        """End and remove everything but the cache."""
        _require_root()
        with self._locked():
            with self._reporter.step("stop processes"):
                # The kubelet first, or it would start anew what ends; containerd last of all.
                for name in sorted(self._supervisor.started(), key=_stop_order):
                    self._supervisor.stop(name)
                teardown.kill_strays(self.paths)
                teardown.kill_containers(self.paths)
            with self._reporter.step("remove network, mounts and files"):
                # There is one pod network per machine: a cluster with another state folder may be using it.
                if not ports.holders([(network.NODE_IP, network.API_PORT)]):
                    teardown.remove_network(self.paths)
                teardown.remove_files(self.paths)

    def status(self) -> Status:
        """Look at every process and at the node; starts nothing."""
        names = [service.name for service in controlplane.services(self.paths)]
        return Status([self._process_status(name) for name in names], self._node_is_ready())

    def load_image(
        self,
        name: str,
        copies: Sequence[tuple[Path, str]] = (),
        *,
        entrypoint: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        working_directory: str = "",
        user: str = "",
    ) -> str:
        """Make an image of the given (source, destination) pairs known to the node; returns its digest."""
        return images.load(
            self.paths,
            name,
            copies,
            entrypoint=entrypoint,
            environment=environment,
            working_directory=working_directory,
            user=user,
        )

    def _build(self) -> None:
        missing = packages.missing()
        if missing:
            with self._reporter.step(f"install Debian packages: {' '.join(missing)}", usual_seconds=30):
                packages.install(missing)
        modules = [module for module in build.MODULES if not build.is_built(self.paths.cache, module)]
        if not modules:
            return
        go = golang.ensure(self.paths, self._reporter)
        for module in modules:
            with self._reporter.step(f"build {', '.join(module.commands)}", module.usual_seconds):
                build.build(self.paths.cache, module, go)

    def _configure(self) -> None:
        with self._reporter.step("write certificates and configuration"):
            self.paths.state.mkdir(parents=True, exist_ok=True)
            self.paths.state.chmod(0o755)
            # Containers see this folder, whoever they run as.
            self.paths.envs.mkdir(parents=True, exist_ok=True, mode=0o755)
            self.paths.volumes.mkdir(exist_ok=True, mode=0o755)
            build.link_all(self.paths.cache, self.paths.bin)
            credentials.ensure_all(self.paths)
            spec = node.base_runtime_spec(node.default_runtime_spec(), node.shown_in_containers(self.paths.envs))
            files = {
                **node.files(self.paths),
                **controlplane.files(self.paths),
                self.paths.base_spec: json.dumps(spec, indent=2),
            }
            for path, text in files.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            self.paths.containerd_socket.parent.mkdir(parents=True, exist_ok=True)
            network.create(self.paths.state / "sysctls.json")

    def _require_startable(self, services: Sequence[Service]) -> None:
        if self._supervisor.is_from_earlier_boot():
            raise ClusterError(
                "this machine was restarted while the cluster ran, which it does not survive: "
                "remove the cluster with `down`, then run `up` again"
            )
        for service in services:
            for holder in ports.holders(service.listens):
                who = f"process {holder.pid} ({holder.command})" if holder.pid else "another process"
                raise ClusterError(
                    f"{service.name} needs port {holder.port}, which {who} holds: end it, or, if it is left "
                    "from an earlier cluster, run `down` first"
                )

    def _start(self, services: Sequence[Service], to_start: Sequence[Service]) -> None:
        started: list[str] = []
        try:
            for service in services:
                if service in to_start:
                    started.append(service.name)
                    with self._reporter.step(f"start {service.name}"):
                        self._supervisor.start(service)
                        self._supervisor.wait_ready(service)
                if service.name == "kube-apiserver":
                    addons.apply(self.paths)
                elif service.name == "containerd":
                    images.load_base(self.paths)
            with self._reporter.step("wait for the node"):
                self._wait_usable()
            # A process may die a moment after it said it was ready: look at all of them once more.
            for service in services:
                self._supervisor.check_alive(service.name)
        except BaseException:
            for name in reversed(started):
                self._supervisor.stop(name)
            if "containerd" in started:
                teardown.kill_containers(self.paths)
            raise

    def _wait_usable(self) -> None:
        deadline = time.monotonic() + 60
        while not (self._node_is_ready() and self._kubectl("get", "serviceaccount", "default").returncode == 0):
            if time.monotonic() > deadline:
                raise ClusterError(f"the node is not ready after 60 s; {self._supervisor.tail('kubelet')}")
            self._supervisor.check_alive("kubelet")
            time.sleep(0.2)

    def _node_is_ready(self) -> bool:
        if not self._supervisor.is_alive("kube-apiserver"):
            return False
        condition = '{.status.conditions[?(@.type=="Ready")].status}'
        answer = self._kubectl("get", "node", credentials.NODE_NAME, f"--output=jsonpath={condition}")
        return answer.returncode == 0 and answer.stdout == "True"

    def _kubectl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [
            str(self.binary("kubectl")),
            f"--kubeconfig={self.kubeconfig}",
            "--request-timeout=5s",
            *arguments,
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    def _process_status(self, name: str) -> ProcessStatus:
        identity = self._supervisor.identity(name)
        pid = identity.pid if identity is not None and identity.is_alive() else None
        memory = processes.resident_bytes(pid) if pid is not None else 0
        return ProcessStatus(name, pid, memory)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.paths.lock.parent.mkdir(parents=True, exist_ok=True)
        with open(self.paths.lock, "w", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with self._reporter.step("wait for another `up` or `down` to end"):
                    fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _require_root() -> None:
    if os.geteuid() != 0:
        raise ClusterError("only root may start and stop containers: run this with sudo")


def _stop_order(name: str) -> int:
    order = ["kubelet", "local-path-provisioner", "kube-controller-manager", "kube-scheduler", "kube-proxy"]
    last = ["kube-apiserver", "etcd", "containerd"]
    if name in last:
        return len(order) + 1 + last.index(name)
    return order.index(name) if name in order else len(order)
