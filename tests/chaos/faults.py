"""What goes wrong: pods, ranks, nodes and operators, at random but from a seed, and put right again."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from integration.harness import Kubectl, operator
from tunesmith_cluster import Cluster

OUTAGE_SECONDS = (5.0, 20.0)
NODE_OUTAGE_SECONDS = (10.0, 75.0)


class Replica:
    """An operator's process that is started again when it is gone, as its Deployment would do."""

    def __init__(self, cluster: Cluster, namespace: str, log: Path) -> None:
        self._arguments = (cluster, namespace, log)
        self.log = log
        self._start()

    def _start(self) -> None:
        self._context = operator(*self._arguments)
        self.process: subprocess.Popen[bytes] = self._context.__enter__()

    def tend(self) -> None:
        """Start it again if it is gone."""
        if self.process.poll() is not None:
            self._context.__exit__(None, None, None)
            self._start()

    def close(self) -> None:
        """End it."""
        self._context.__exit__(None, None, None)


class Chaos:
    """A source of faults. At most one node is away at a time, as in a cluster that somebody looks after."""

    def __init__(
        self, cluster: Cluster, kubectl: Kubectl, replicas: list[Replica], nodes: list[str], seed: int
    ) -> None:
        self.cluster, self.kubectl, self.replicas, self.nodes = cluster, kubectl, replicas, nodes
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self._mends: list[tuple[float, Callable[[], object]]] = []
        self._node_away = False
        self.faults: list[tuple[Callable[[], bool], int]] = [
            (self.delete_pod, 5),
            (self.kill_rank, 5),
            (self.kill_operator, 2),
            (self.stop_operator, 2),
            (self.kill_node, 1),
        ]

    def strike(self) -> None:
        """One fault, if what it would hit is there."""
        faults, weights = zip(*self.faults, strict=True)
        fault = self.random.choices(faults, weights)[0]
        if fault():
            self.done[fault.__name__] += 1

    def tend(self) -> None:
        """Mend what is due, and start replicas that are gone."""
        now = time.monotonic()
        due = [mend for when, mend in self._mends if when <= now]
        self._mends = [(when, mend) for when, mend in self._mends if when > now]
        for mend in due:
            mend()
        for replica in self.replicas:
            replica.tend()

    def mend_all(self) -> None:
        """Everything is well again."""
        for _, mend in self._mends:
            mend()
        self._mends = []
        self.tend()

    def delete_pod(self) -> bool:
        """As a drain or a preemption: SIGTERM and its grace."""
        pods = self.kubectl.running_pods()
        if pods:
            self.kubectl("delete", "pod", self.random.choice(pods), "--wait=false", check=False)
        return bool(pods)

    def kill_rank(self) -> bool:
        """SIGKILL to a training process."""
        ranks = training_processes(self.kubectl)
        if ranks:
            with suppress(ProcessLookupError):
                os.kill(self.random.choice(ranks), signal.SIGKILL)
        return bool(ranks)

    def kill_operator(self) -> bool:
        """SIGKILL to a replica: the leader, or the standby."""
        self.random.choice(self.replicas).process.kill()
        return True

    def stop_operator(self) -> bool:
        """SIGSTOP, and SIGCONT when another may lead already."""
        process = self.random.choice(self.replicas).process
        process.send_signal(signal.SIGSTOP)
        self._later(OUTAGE_SECONDS, lambda: process.send_signal(signal.SIGCONT))
        return True

    def kill_node(self) -> bool:
        """A machine that loses its power, with all that runs on it."""
        if self._node_away:
            return False
        name = self.random.choice(self.nodes)
        self._node_away = True
        self.cluster.kill_node(name)

        def back() -> None:
            self.cluster.start_node(name)
            self._node_away = False

        self._later(NODE_OUTAGE_SECONDS, back)
        return True

    def _later(self, span: tuple[float, float], mend: Callable[[], object]) -> None:
        self._mends.append((time.monotonic() + self.random.uniform(*span), mend))


def training_processes(kubectl: Kubectl) -> list[int]:
    """Process ids, on this machine, of the training processes of this namespace's pods."""
    uids = {pod["metadata"]["uid"] for pod in kubectl.list("pod") if pod["status"].get("phase") == "Running"}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, cgroup = (folder / "cmdline").read_text(), (folder / "cgroup").read_text().replace("_", "-")
        except (OSError, UnicodeDecodeError):
            continue
        if "tunesmith_trainer" in command and any(uid in cgroup for uid in uids):
            found.append(int(folder.name))
    return sorted(found)
