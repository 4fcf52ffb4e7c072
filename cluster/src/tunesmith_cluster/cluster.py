"""The cluster as one object: up, down, status, and what tests need of it."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tunesmith_cluster import (
    build,
    cgroups,
    components,
    controlplane,
    credentials,
    files,
    images,
    network,
    node,
    packages,
    partials,
    ports,
    processes,
    teardown,
)
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.managers import Manager
from tunesmith_cluster.nodes import Node, at_least, existing, named
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
    nodes: Mapping[str, bool]
    """Each node's name, and whether it is ready."""

    @property
    def is_well(self) -> bool:
        """Whether all processes run and all nodes are ready."""
        return all(self.nodes.values()) and all(process.pid is not None for process in self.processes)


class Cluster:
    """A Kubernetes made of processes on this machine. Needs root."""

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

    def up(self, nodes: int = 1, *, managers: Collection[Manager] = ()) -> None:
        """Build, install and start what is missing; what is there already, further nodes and managers included, is not
        touched.

        So it also brings a cluster back that the machine's restart ended, with all that its API server had stored.
        """
        require_root()
        with self._locked():
            for folder in self.paths.made:
                partials.sweep(folder)
            wanted = at_least(self.paths, nodes)
            added = components.managers(self.paths, managers)
            services = components.services(self.paths, wanted, added)
            to_start = self._not_running(services)
            self._require_startable(to_start)  # before minutes are spent
            self._build(added)
            if not to_start and self._are_ready(wanted):
                self._reporter.say("the cluster is up already")
                return
            self._require_startable(to_start)
            self._clear_lost_nodes()
            self._configure(wanted, added)
            self._start(services, to_start, wanted)

    def is_started(self) -> bool:
        """Whether an API server runs here; it may not be ready."""
        return self._supervisor.is_alive(controlplane.APISERVER)

    def require_ports(self) -> None:
        """Raise ClusterError if something else holds a port that `up` would need."""
        services = components.services(self.paths, at_least(self.paths, 1), components.managers(self.paths))
        self._require_startable(self._not_running(services))

    def _not_running(self, services: Sequence[Service]) -> list[Service]:
        return [service for service in services if not self._supervisor.is_alive(service.name)]

    def down(self) -> None:
        """End and remove everything but the cache."""
        require_root()
        with self._locked():
            with self._reporter.step("stop processes"):
                for name in sorted(self._supervisor.started(), key=components.stop_order):
                    self._supervisor.stop(name)
                teardown.kill_strays(self.paths)
                for each in existing(self.paths):
                    teardown.kill_containers(each)
            with self._reporter.step("remove network, mounts and files"):
                # There is one pod network per machine: a cluster with another state folder may be using it.
                if not ports.holders([(network.HOST_IP, network.API_PORT)]):
                    teardown.remove_network(self.paths)
                teardown.remove_files(self.paths)

    def status(self) -> Status:
        """Look at every process and at the nodes; starts nothing."""
        require_root()
        wanted = at_least(self.paths, 1)
        services = components.services(self.paths, wanted, components.managers(self.paths))
        ready = self._ready_nodes()
        return Status(
            [self._process_status(service.name) for service in services],
            {each.name: each.name in ready for each in wanted},
        )

    def kill(self) -> None:
        """End everything as a loss of power would; `up` brings it back."""
        with self._locked():
            for name in self._supervisor.started():
                self._supervisor.kill(name)
            self._clear_lost_nodes()
            teardown.remove_network(self.paths)

    def kill_node(self, name: str) -> None:
        """End a node as a loss of power would, its containers included; `start_node` switches it on again.

        To the API server it has fallen silent: its Node and its pods are still there.
        """
        with self._locked():
            lost = named(self.paths, name)
            self._supervisor.kill(lost.kubelet_service)
            self._supervisor.kill(lost.containerd_service)
            self._clear_lost_nodes()

    def kill_kubelet(self, name: str) -> None:
        """Silence a node whose containers go on, as a cut connection would; `start_node` mends it."""
        with self._locked():
            self._supervisor.kill(named(self.paths, name).kubelet_service)

    def start_node(self, name: str) -> None:
        """Start what was killed of a node, and wait until its kubelet answers."""
        require_root()
        with self._locked():
            found = named(self.paths, name)
            services = node.services(found)
            to_start = [service for service in services if not self._supervisor.is_alive(service.name)]
            self._require_startable(to_start)
            self._start(services, to_start, [found])

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
        """Make an image of the given (source, destination) pairs known to all nodes; returns its digest."""
        return images.load(
            self.paths,
            name,
            copies,
            entrypoint=entrypoint,
            environment=environment,
            working_directory=working_directory,
            user=user,
        )

    def _build(self, managers: Sequence[Manager]) -> None:
        missing = packages.missing()
        if missing:
            with self._reporter.step(f"install Debian packages: {' '.join(missing)}", usual_seconds=30):
                packages.install(missing)
        build.ensure(self.paths, [*build.MODULES, *(each.module for each in managers)], self._reporter)

    def _configure(self, wanted: Sequence[Node], managers: Sequence[Manager]) -> None:
        with self._reporter.step("write certificates and configuration"):
            self.paths.state.mkdir(parents=True, exist_ok=True)
            self.paths.state.chmod(0o755)
            # Containers see this folder, whoever they run as.
            self.paths.envs.mkdir(parents=True, exist_ok=True, mode=0o755)
            self.paths.volumes.mkdir(exist_ok=True, mode=0o755)
            build.link_all(self.paths.cache, self.paths.bin)
            credentials.ensure_all(self.paths, wanted)
            spec = node.base_runtime_spec(node.default_runtime_spec(), node.shown_in_containers(self.paths.envs))
            wanted_files = {**controlplane.files(self.paths), self.paths.base_spec: json.dumps(spec, indent=2)}
            for each in wanted:
                wanted_files |= node.files(each)
            for path, text in wanted_files.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                files.write(path, text.encode())
            for each in wanted:
                each.containerd_socket.parent.mkdir(parents=True, exist_ok=True)
                if each.cgroup is not None:
                    cgroups.create(each.cgroup)
            network.create(self.paths.state / "sysctls.json", len(wanted))
            for manager in managers:
                manager.configure(self.paths)

    def _clear_lost_nodes(self) -> None:
        """End the containers of nodes whose containerd has died: a new one would not know those that outlived it."""
        for each in existing(self.paths):
            if not self._supervisor.is_alive(each.containerd_service):
                teardown.kill_containers(each)
                teardown.remove_pod_networks(each)

    def _require_startable(self, services: Sequence[Service]) -> None:
        for service in services:
            for holder in ports.holders(service.listens):
                who = f"process {holder.pid} ({holder.command})" if holder.pid else "another process"
                raise ClusterError(
                    f"{service.name} needs port {holder.port}, which {who} holds: end it, or, if it is left "
                    "from an earlier cluster, run `make down` first"
                )

    def _start(self, services: Sequence[Service], to_start: Sequence[Service], wanted: Sequence[Node]) -> None:
        started: list[str] = []
        try:
            for service in services:
                if service in to_start:
                    started.append(service.name)
                    with self._reporter.step(f"start {service.name}"):
                        components.before_start(self.paths, service.name)
                        self._supervisor.start(service)
                        self._supervisor.wait_ready(service)
                else:  # it may have been started a moment ago, by an `up` that was killed
                    self._supervisor.wait_ready(service)
                components.when_ready(self.paths, wanted, service.name)
            with self._reporter.step("wait for the nodes"):
                self._wait_usable(wanted)
            # A process may die a moment after it said it was ready: look at all of them once more.
            for service in services:
                self._supervisor.check_alive(service.name)
        except BaseException:
            for name in reversed(started):
                self._supervisor.stop(name)
            for each in wanted:
                if each.containerd_service in started:
                    teardown.kill_containers(each)
            raise

    def _wait_usable(self, wanted: Sequence[Node]) -> None:
        deadline = time.monotonic() + 60
        while not (self._are_ready(wanted) and self._kubectl("get", "serviceaccount", "default").returncode == 0):
            late = wanted[-1].kubelet_service
            if time.monotonic() > deadline:
                raise ClusterError(f"the nodes are not ready after 60 s; {self._supervisor.tail(late)}")
            self._supervisor.check_alive(late)
            time.sleep(0.2)

    def _are_ready(self, wanted: Sequence[Node]) -> bool:
        return {each.name for each in wanted} <= self._ready_nodes()

    def _ready_nodes(self) -> set[str]:
        """The names of the nodes that the API server calls ready."""
        if not self.is_started():
            return set()
        ready = '{.metadata.name}={.status.conditions[?(@.type=="Ready")].status}'
        answer = self._kubectl("get", "nodes", f"--output=jsonpath={{range .items[*]}}{ready} {{end}}")
        return {word.removesuffix("=True") for word in answer.stdout.split() if word.endswith("=True")}

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


def require_root() -> None:
    """Raise ClusterError for anybody else."""
    if os.geteuid() != 0:
        raise ClusterError("only root may start and stop containers, and read the cluster's keys: run this with sudo")
