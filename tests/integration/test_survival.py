"""A job that survives what clusters do to it: real API server, Job controller, scheduler and kubelet."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from integration.harness import Kubectl, claim, eventually, evidence, merge, step_reached, train
from tunesmith_cluster import Cluster

STEPS: dict[str, Any] = {
    "training": {"maxSteps": 40, "globalBatchSize": 4},
    "checkpoint": {"everySteps": 5},
    "memory": {"check": "Disabled"},
}


def test_a_deleted_pod_costs_no_step_when_it_could_checkpoint(
    cluster: Cluster, kubectl: Kubectl, running: object
) -> None:
    kubectl.apply(train("x", "steps-100", nodes=2, **STEPS))
    step_reached(kubectl, "x", 7)
    kubectl("delete", "pod", kubectl.names("pod")[1], "--wait=false")
    status = kubectl.wait("ftj", "x", "Completed", seconds=120)["status"]
    assert [one["reason"] for one in status["attempts"]] == ["Interrupted", "Completed"]
    assert status["interruptions"] == 1
    assert not status.get("restarts")
    assert status["attempts"][1]["resumedStep"] > 5
    trace = evidence(cluster, kubectl, "x")
    assert not [line for line in trace if line["event"] == "doubled"]
    steps = [line["step"] for line in trace if line["event"] == "step" and line["rank"] == 0]
    assert steps == list(range(1, 41))


def test_a_failure_is_tried_again_after_a_backoff_and_then_told(kubectl: Kubectl, running: object) -> None:
    kubectl.apply(train("x", "crash", nodes=2, restartPolicy={"maxRestarts": 1, "backoffSeconds": 1}))
    status = kubectl.wait("ftj", "x", "Internal")["status"]
    assert [one["reason"] for one in status["attempts"]] == ["Internal", "Internal"]
    assert status["restarts"] == 1
    assert "ValueError: no (restartPolicy.maxRestarts: 1 used up)" in status["failure"]["message"]
    first, second = status["attempts"]
    assert first["pod"].startswith("x-train-1-")
    assert second["pod"].startswith("x-train-2-")


def test_out_of_memory_goes_on_with_a_smaller_micro_batch(kubectl: Kubectl, running: object) -> None:
    kubectl.apply(train("x", "oom", training={"globalBatchSize": 8, "microBatchSize": 4}))
    status = kubectl.wait("ftj", "x", "Completed")["status"]
    assert [one["microBatchSize"] for one in status["attempts"]] == [4, 2, 1]
    plan = json.loads(kubectl.get("configmap", "x-train-3")["data"]["plan.json"])
    assert plan["training"]["gradientAccumulationSteps"] == 8


def test_a_standstill_is_ended_where_the_job_says_so(kubectl: Kubectl, running: object) -> None:
    kubectl.apply(train("x", "stall", stall={"minSeconds": 2, "action": "Restart"}))
    status = kubectl.wait("ftj", "x", "Completed")["status"]
    assert status["attempts"][0]["reason"] == "Stalled"
    assert "no step since step 3" in status["attempts"][0]["message"]


def test_a_standstill_is_said_in_a_condition(kubectl: Kubectl, running: object) -> None:
    kubectl.apply(train("x", "stall", stall={"minSeconds": 2}))
    kubectl.wait("ftj", "x", "NoProgress", "Stalled")


def test_suspending_frees_the_pods_and_resuming_goes_on(cluster: Cluster, kubectl: Kubectl, running: object) -> None:
    kubectl.apply(train("x", "steps-100", nodes=2, **STEPS))
    step_reached(kubectl, "x", 7)
    kubectl("patch", "ftj", "x", "--type=merge", "-p", '{"spec": {"suspend": true}}')
    kubectl.wait("ftj", "x", "Suspended")
    assert kubectl.running_pods() == []
    assert "startTime" not in kubectl.get("ftj", "x")["status"]
    kubectl("patch", "ftj", "x", "--type=merge", "-p", '{"spec": {"suspend": false}}')
    kubectl.wait("ftj", "x", "Completed", seconds=120)
    steps = [e["step"] for e in evidence(cluster, kubectl, "x") if e["event"] == "step" and e["rank"] == 0]
    assert steps == list(range(1, 41))


def test_a_deadline_ends_the_job(kubectl: Kubectl, running: object) -> None:
    kubectl.apply(train("x", "hang", activeDeadlineSeconds=3))
    status = kubectl.wait("ftj", "x", "DeadlineExceeded")["status"]
    assert len(status["attempts"]) == 1
    eventually(lambda: not kubectl.running_pods(), lambda: kubectl("get", "pods"))


def test_a_job_is_deleted_when_its_time_to_live_is_over(kubectl: Kubectl, running: object) -> None:
    kubectl.apply(train("x", ttlSecondsAfterFinished=2), train("y", cleanPodPolicy="All"))
    kubectl.wait("ftj", "y", "Completed")
    eventually(lambda: kubectl.names("ftj") == ["y"], lambda: kubectl("get", "ftj"))
    eventually(lambda: kubectl.names("pod") == [], lambda: kubectl("get", "pods"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"podTemplate": {"image": "localhost/no-such-image:1"}}, "ErrImage"),
        ({"resources": {"requests": {"cpu": "1000"}}}, "Insufficient cpu"),
        ({"podTemplate": {"nodeSelector": {"no": "such"}}}, "didn't match Pod's node affinity/selector"),
        ({"model": {"uri": "hf://a/b", "secretRef": {"name": "token"}}}, "spec.model: Secret token does not exist"),
        ({"output": {"uri": "pvc://nowhere"}}, "spec.output.uri: PersistentVolumeClaim nowhere does not exist"),
        (
            {"podTemplate": {"volumes": [{"name": "v", "secret": {"secretName": "s"}}]}},
            "spec.podTemplate.volumes[0]: Secret s does not exist",
        ),
    ],
)
def test_what_a_job_waits_for_is_said_while_it_waits(
    kubectl: Kubectl, running: object, spec: dict[str, Any], message: str
) -> None:
    kubectl.apply(train("x", **{"memory": {"check": "Disabled"}, **spec}))
    eventually(
        lambda: message in kubectl.condition("ftj", "x").get("message", ""),
        lambda: str(kubectl.condition("ftj", "x")),
    )
    assert kubectl.condition("ftj", "x")["status"] == "Unknown"


def test_a_quota_for_pods_is_said_while_the_job_waits(kubectl: Kubectl, running: object) -> None:
    kubectl("create", "quota", "none", "--hard=pods=0")
    kubectl.apply(train("x", memory={"check": "Disabled"}))
    eventually(
        lambda: "exceeded quota: none" in kubectl.condition("ftj", "x").get("message", ""),
        lambda: str(kubectl.condition("ftj", "x")),
    )
    kubectl("delete", "quota", "none")
    kubectl.wait("ftj", "x", "Completed", seconds=120)


def test_a_claim_for_one_node_does_not_do_for_two(kubectl: Kubectl, running: object) -> None:
    kubectl.apply(
        claim("mine", "ReadWriteOnce"),
        train("x", nodes=2, checkpoint={"storage": "pvc://mine"}),
        train("y", checkpoint={"storage": "pvc://mine"}),
    )
    message = kubectl.wait("ftj", "x", "WaitingForInput")["status"]["conditions"][0]["message"]
    assert "spec.checkpoint.storage: PersistentVolumeClaim mine allows ReadWriteOnce, but nodes: 2 needs" in message
    kubectl.wait("ftj", "y", "Completed")


def test_the_pod_template_reaches_the_pods(kubectl: Kubectl, running: object) -> None:
    template = {
        "labels": {"team": "a"},
        "annotations": {"note": "b"},
        "env": [{"name": "COLOUR", "value": "red"}],
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "volumes": [{"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}}],
        "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
    }
    kubectl.apply(train("x", "hang", podTemplate=template, memory={"check": "Disabled"}))
    kubectl.wait("ftj", "x", "Running")
    [pod] = kubectl.list("pod")
    assert pod["metadata"]["labels"]["team"] == "a"
    assert pod["metadata"]["annotations"]["note"] == "b"
    assert {"name": "COLOUR", "value": "red"} in pod["spec"]["containers"][0]["env"]
    assert {"name": "scratch", "mountPath": "/scratch"} in pod["spec"]["containers"][0]["volumeMounts"]
    lost = [t for t in pod["spec"]["tolerations"] if t["key"] == "node.kubernetes.io/unreachable"]
    assert lost[0]["tolerationSeconds"] == 30


def test_a_template_that_the_api_server_refuses_is_told(kubectl: Kubectl, running: object) -> None:
    wrong = {"volumes": [{"name": "v", "hostPath": {"path": "/"}, "emptyDir": {}}]}
    kubectl.apply(train("x", podTemplate=wrong, memory={"check": "Disabled"}))
    assert "may not specify more than 1 volume type" in json.dumps(kubectl.wait("ftj", "x", "Rejected")["status"])


def test_a_model_that_is_not_there_is_told_before_any_training_pod_is_made(kubectl: Kubectl, running: object) -> None:
    kubectl.apply(train("x", "no-model"))
    status = kubectl.wait("ftj", "x", "ModelError")["status"]
    assert "there is no config.json" in status["failure"]["message"]
    assert kubectl.names("job") == ["x-inspect"]


def test_a_job_that_cannot_fit_is_refused_with_what_would(kubectl: Kubectl, running: object) -> None:
    full = {"tuner": {"type": "Full"}, "memory": {"perDevice": "24Gi"}}
    kubectl.apply(train("x", "qwen2-7b", **full))
    status = kubectl.wait("ftj", "x", "DoesNotFit")["status"]
    assert "QLoRA" in status["failure"]["message"]
    assert status["memory"]["totalBytes"] > 24 * 2**30
    assert kubectl.names("job") == ["x-inspect"]
    kubectl.apply(train("y", "qwen2-7b", tuner={"type": "Full"}, memory={"perDevice": "24Gi", "check": "Warn"}))
    eventually(lambda: "y-train-1" in kubectl.names("job"), lambda: kubectl("describe", "ftj", "y"))
    assert kubectl.get("ftj", "y")["status"]["memory"]["availableBytes"] == 24 * 2**30


def test_the_strategy_is_chosen_by_the_estimate(kubectl: Kubectl, running: object) -> None:
    eight = {"resources": {"limits": {"nvidia.com/gpu": 8}}, "memory": {"perDevice": "80Gi"}}
    kubectl.apply(train("x", "qwen2-7b", tuner={"type": "Full"}, **eight))
    eventually(lambda: "x-train-1" in kubectl.names("job"), lambda: kubectl("describe", "ftj", "x"))
    plan = json.loads(kubectl.get("configmap", "x-train-1")["data"]["plan.json"])
    assert plan["distribution"]["strategy"].startswith("ZeRO")
    assert kubectl.get("ftj", "x")["status"]["memory"]["strategy"].startswith("ZeRO")


def test_describe_answers_why(kubectl: Kubectl, running: object) -> None:
    kubectl.apply(train("x", "bad-data", nodes=2))
    kubectl.wait("ftj", "x", "DataError")
    described = kubectl("describe", "ftj", "x")
    for part in ("DataError", "row 17: no answer", r"Exit Code:\s+65", r"Rank:\s+1", "one", "two"):
        assert re.search(part, described), part


def test_a_merge_survives_too(kubectl: Kubectl, running: object) -> None:
    kubectl.apply(train("tuned"), merge("m", "tuned", "hang"))
    kubectl.wait("mj", "m", "Running")
    kubectl("delete", "pod", "-l", "tunesmith.io/name=m", "--wait=false")
    eventually(lambda: "m-merge-2" in kubectl.names("job"), lambda: kubectl("describe", "mj", "m"))


def test_fields_that_may_change_do_and_others_do_not(kubectl: Kubectl) -> None:
    kubectl.apply(train("x", suspend=True))
    kubectl.apply(train("x", suspend=False, ttlSecondsAfterFinished=5))
    refused = kubectl("patch", "ftj", "x", "--type=merge", "-p", '{"spec": {"nodes": 2}}', check=False)
    assert "cannot be changed, but for suspend, ttlSecondsAfterFinished and output.push" in refused


def test_the_columns_tell_how_far_it_is(kubectl: Kubectl, running: object) -> None:
    kubectl.apply(train("x", "steps-200", **STEPS))
    step_reached(kubectl, "x", 5)
    head, row = kubectl("get", "ftj", "x").splitlines()
    assert head.split() == ["NAME", "STATUS", "PROGRESS", "LOSS", "ETA", "AGE"]
    assert "/40 (" in row


def test_an_operator_without_work_writes_nothing(
    kubectl: Kubectl, running: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    kubectl.apply(train("x"), train("y", "hang"), train("z", suspend=True))
    kubectl.wait("ftj", "x", "Completed")
    kubectl.wait("ftj", "y", "Running")
    kubectl.wait("ftj", "z", "Suspended")
    time.sleep(2)
    before = kubectl("get", "ftj,job,configmap,event", "-o", "jsonpath={.items[*].metadata.resourceVersion}")
    time.sleep(8)
    assert kubectl("get", "ftj,job,configmap,event", "-o", "jsonpath={.items[*].metadata.resourceVersion}") == before
