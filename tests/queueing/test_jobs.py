"""FineTuneJobs where others want the same machines, and where machines get lost."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.harness import Kubectl, eventually, evidence, operator, prepare, train
from queueing.conftest import MakePriority, MakeQueue
from tunesmith_cluster import Cluster

LOST = "node-1"
STEPS: dict[str, Any] = {
    "training": {"maxSteps": 60, "globalBatchSize": 4},
    "checkpoint": {"everySteps": 5},
    "memory": {"check": "Disabled"},
}


def one_per_node(name: str) -> dict[str, Any]:
    spread = {
        "labelSelector": {"matchLabels": {"tunesmith.io/name": name}},
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule",
    }
    return {"topologySpreadConstraints": [spread]}


@pytest.fixture
def running(cluster: Cluster, kubectl: Kubectl, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    prepare(cluster)
    log = tmp_path / "operator.log"
    with operator(cluster, kubectl.namespace, log) as process:
        yield process
    print(log.read_text())
    assert "Traceback" not in log.read_text()


@pytest.fixture
def node(cluster: Cluster) -> Iterator[str]:
    """The name of a node that the test may lose; afterwards it is there again."""
    yield LOST
    cluster.start_node(LOST)


def reason(kubectl: Kubectl, name: str, type_: str = "Succeeded") -> str:
    found: str = kubectl.condition("ftj", name, type_).get("reason", "")
    return found


def step_reached(kubectl: Kubectl, name: str, step: int) -> None:
    eventually(
        lambda: kubectl.get("ftj", name).get("status", {}).get("progress", {}).get("step", 0) >= step,
        lambda: kubectl("describe", "ftj", name),
    )


def steps_of_rank_0(cluster: Cluster, kubectl: Kubectl, name: str) -> list[int]:
    trace = evidence(cluster, kubectl, name)
    assert not [line for line in trace if line["event"] == "doubled"]
    return [line["step"] for line in trace if line["event"] == "step" and line["rank"] == 0]


def test_the_second_of_two_jobs_starts_when_the_first_ends(
    kubectl: Kubectl, running: object, make_queue: MakeQueue
) -> None:
    queued: dict[str, Any] = {"queueName": make_queue(cpu="1"), "resources": {"requests": {"cpu": "600m"}}}
    kubectl.apply(train("first", "steps-200", **STEPS, **queued))
    kubectl.wait("ftj", "first", "Running")
    assert kubectl.condition("ftj", "first", "Admitted")["status"] == "True"
    kubectl.apply(train("second", memory={"check": "Disabled"}, **queued))
    kubectl.wait("ftj", "second", "Queued")
    eventually(
        lambda: "insufficient unused quota for cpu" in kubectl.condition("ftj", "second")["message"],
        lambda: kubectl("describe", "ftj", "second"),
    )
    kubectl.wait("ftj", "second", "Completed")
    assert reason(kubectl, "first") == "Completed"


def test_preemption_suspends_with_a_checkpoint_and_the_job_goes_on_from_it(
    cluster: Cluster, kubectl: Kubectl, running: object, make_queue: MakeQueue, make_priority: MakePriority
) -> None:
    queued: dict[str, Any] = {"queueName": make_queue(cpu="1"), "resources": {"requests": {"cpu": "400m"}}}
    kubectl.apply(train("low", "steps-200", nodes=2, **STEPS, **queued))
    step_reached(kubectl, "low", 7)
    high = train("high", "steps-100", **STEPS, **queued, priority=make_priority(1000))
    kubectl.apply(high)
    kubectl.wait("ftj", "low", "Queued")
    assert kubectl.condition("ftj", "low", "Admitted")["status"] == "False"
    kubectl.wait("ftj", "high", "Completed")
    kubectl.wait("ftj", "low", "Completed", seconds=120)
    assert steps_of_rank_0(cluster, kubectl, "low") == list(range(1, 61))
    eventually(lambda: "Preempted" in kubectl("describe", "ftj", "low"), lambda: kubectl("describe", "ftj", "low"))


def test_a_lost_node_costs_no_more_than_the_steps_since_the_checkpoint(
    cluster: Cluster, kubectl: Kubectl, running: object, node: str
) -> None:
    kubectl.apply(
        train(
            "x", "steps-400", nodes=2, podTemplate=one_per_node("x"),
            elastic={"minNodes": 1, "waitSeconds": 10}, **STEPS,
        )
    )  # fmt: skip
    step_reached(kubectl, "x", 12)
    cluster.kill_node(node)
    status = kubectl.wait("ftj", "x", "Completed", seconds=300)["status"]
    reasons = [one["reason"] for one in status["attempts"]]
    assert reasons[0] in {"NodeLost", "PeerLost", "Interrupted"}
    assert reasons[-2:] == ["TooFewNodes", "Completed"]
    assert [one["nodes"] for one in status["attempts"]][-2:] == [2, 1]
    steps = steps_of_rank_0(cluster, kubectl, "x")
    assert sorted(set(steps)) == list(range(1, 61))
    assert len(steps) - 60 <= 5


def test_a_process_on_a_node_that_is_cut_off_writes_nothing_after_its_successor_began(
    cluster: Cluster, kubectl: Kubectl, running: object, node: str
) -> None:
    """Its kubelet is gone, and it runs on while the next attempt runs elsewhere."""
    there = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}
    prefer = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": there}]}
    steps: dict[str, Any] = {**STEPS, "training": {"maxSteps": 150, "globalBatchSize": 4}}
    kubectl.apply(train("x", "steps-700", podTemplate={"affinity": {"nodeAffinity": prefer}}, **steps))
    step_reached(kubectl, "x", 7)
    assert kubectl.list("pod")[0]["spec"]["nodeName"] == node
    cluster.kill_kubelet(node)
    kubectl.wait("ftj", "x", "Completed", seconds=400)
    trace = evidence(cluster, kubectl, "x")
    began = next(i for i, line in enumerate(trace) if line["event"] == "start" and line["attempt"] == 2)
    after = [line for line in trace[began:] if line["attempt"] == 1]
    assert after, "the old process ran on"
    assert not [line for line in after if line["event"] == "checkpoint"]
    assert len(after) <= 5, "it ended at its next checkpoint"
    assert kubectl.get("ftj", "x")["status"]["attempts"][0]["reason"] == "NodeLost"
