"""FineTuneJobs where others want the same machines, and where machines get lost."""

from __future__ import annotations

from typing import Any

from integration.harness import Kubectl, eventually, evidence, step_reached, train
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
    assert kubectl.condition("ftj", "first")["reason"] == "Completed"


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
    lossy: Cluster, kubectl: Kubectl, running: object
) -> None:
    kubectl.apply(
        train(
            "x", "steps-400", nodes=2, podTemplate=one_per_node("x"),
            elastic={"minNodes": 1, "waitSeconds": 10}, **STEPS,
        )
    )  # fmt: skip
    step_reached(kubectl, "x", 12)
    lossy.kill_node(LOST)
    status = kubectl.wait("ftj", "x", "Completed", seconds=300)["status"]
    reasons = [one["reason"] for one in status["attempts"]]
    assert reasons[0] in {"NodeLost", "PeerLost", "Interrupted"}
    assert reasons[-2:] == ["TooFewNodes", "Completed"]
    assert [one["nodes"] for one in status["attempts"]][-2:] == [2, 1]
    steps = steps_of_rank_0(lossy, kubectl, "x")
    assert sorted(set(steps)) == list(range(1, 61))
    assert len(steps) - 60 <= 5


def test_a_process_on_a_node_that_is_cut_off_writes_nothing_after_its_successor_began(
    lossy: Cluster, kubectl: Kubectl, running: object
) -> None:
    """Its kubelet is gone, and it runs on while the next attempt runs elsewhere."""
    there = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [LOST]}]}
    prefer = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": there}]}
    steps: dict[str, Any] = {**STEPS, "training": {"maxSteps": 150, "globalBatchSize": 4}}
    kubectl.apply(train("x", "steps-700", podTemplate={"affinity": {"nodeAffinity": prefer}}, **steps))
    step_reached(kubectl, "x", 7)
    assert kubectl.list("pod")[0]["spec"]["nodeName"] == LOST
    lossy.kill_kubelet(LOST)
    kubectl.wait("ftj", "x", "Completed", seconds=400)
    trace = evidence(lossy, kubectl, "x")
    began = next(i for i, line in enumerate(trace) if line["event"] == "start" and line["attempt"] == 2)
    after = [line for line in trace[began:] if line["attempt"] == 1]
    assert after, "the old process ran on"
    assert not [line for line in after if line["event"] == "checkpoint"]
    assert len(after) <= 5, "it ended at its next checkpoint"
    assert kubectl.get("ftj", "x")["status"]["attempts"][0]["reason"] == "NodeLost"
