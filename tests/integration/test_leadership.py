"""Two replicas: whatever becomes of the leader, the other leads within 15 s, and nothing is done twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml
from integration.harness import HERE, Kubectl, eventually, operator, train
from tunesmith_cluster import Cluster

TAKEOVER_SECONDS = 15


@contextmanager
def link(cluster: Cluster, folder: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that carries a connection to the API server, and a kubeconfig that goes through it. To stop the process
    is to cut the cable: packets vanish, and nobody is told.
    """
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    target = config["clusters"][0]["cluster"]["server"].removeprefix("https://")
    command = [sys.executable, HERE / "cable.py", target]
    cable = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert cable.stdout
        config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{cable.stdout.readline().strip()}"
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        yield cable, path
    finally:
        cable.kill()
        cable.communicate()


def holder(kubectl: Kubectl) -> str:
    lease: str = kubectl.get("lease", "tunesmith-operator")["spec"]["holderIdentity"]
    return lease


def creations(cluster: Cluster, namespace: str, resource: str) -> list[int]:
    """HTTP status of every creation in the namespace, by the API server's audit log."""
    found = []
    for line in (cluster.paths.logs / "audit.log").read_text().splitlines():
        event = json.loads(line)
        ref = event.get("objectRef") or {}
        if event["verb"] == "create" and ref.get("namespace") == namespace and ref.get("resource") == resource:
            found.append(event["responseStatus"]["code"])
    return found


@pytest.mark.parametrize(
    "fate", ["killed", "cut off", *(pytest.param(one, marks=pytest.mark.long) for one in ("terminated", "stopped"))]
)
def test_the_standby_leads_whatever_becomes_of_the_leader(
    cluster: Cluster, kubectl: Kubectl, tmp_path: Path, fate: str
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with ExitStack() as stack:
        cable, kubeconfig = stack.enter_context(link(cluster, tmp_path))
        leader = stack.enter_context(operator(cluster, kubectl.namespace, first, kubeconfig))
        eventually(lambda: "leading" in first.read_text(), first.read_text)
        old = holder(kubectl)
        stack.enter_context(operator(cluster, kubectl.namespace, second))
        eventually(lambda: "another replica leads" in second.read_text(), second.read_text)
        kubectl.apply(train("before", "hang", memory={"check": "Disabled"}))
        kubectl.wait("finetunejob", "before", "Running")
        fates: dict[str, Callable[[], object]] = {
            "terminated": leader.terminate,
            "killed": leader.kill,
            "stopped": lambda: leader.send_signal(signal.SIGSTOP),
            "cut off": lambda: cable.send_signal(signal.SIGSTOP),
        }
        fates[fate]()
        eventually(lambda: holder(kubectl) not in {old, ""}, second.read_text, TAKEOVER_SECONDS)
        kubectl.apply(train("after", memory={"check": "Disabled"}))
        kubectl.wait("finetunejob", "after", "Completed")
        if fate == "stopped":
            leader.send_signal(signal.SIGCONT)
        if fate in {"stopped", "cut off"}:
            assert leader.wait(30) == 1, first.read_text()
            assert "Lease" in first.read_text()
        assert kubectl.names("job") == ["after-train-1", "before-train-1"]
        assert creations(cluster, kubectl.namespace, "jobs") == [201, 201]
        assert kubectl.condition("finetunejob", "before")["reason"] == "Running"
