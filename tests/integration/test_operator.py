"""The operator's process on a real cluster: the happy path and the first unhappy ones."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from integration.harness import Kubectl, eventually, infer, merge, operator, serve, train
from tunesmith_cluster import Cluster


def test_a_chain_applied_in_reverse_order_runs_to_its_end(kubectl: Kubectl, running: object) -> None:
    kubectl.apply(serve("chat", model={"mergeJobRef": {"name": "merged"}}), merge("merged", "tuned"))
    kubectl.wait("mergejob", "merged", "WaitingForReference")
    kubectl.wait("modeldeployment", "chat", "WaitingForReference", "Ready")
    kubectl.apply(train("tuned", nodes=2))
    kubectl.wait("finetunejob", "tuned", "Completed")
    done = kubectl.wait("mergejob", "merged", "Completed")
    assert done["status"]["artifact"]["uri"] == "pvc://tunesmith-store/models/0123"
    assert done["status"]["logitError"] == 0.001
    eventually(lambda: kubectl.names("deployment") == ["chat-engine"], lambda: "no deployment")
    arguments = kubectl.get("deployment", "chat-engine")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--model=/mnt/claims/tunesmith-store/models/0123" in arguments


def test_a_model_is_asked_when_its_adapter_is_there_and_what_is_measured_is_shown(
    kubectl: Kubectl, running: object
) -> None:
    kubectl.apply(infer("answers", "tuned"))
    kubectl.wait("inferencejob", "answers", "WaitingForReference")
    kubectl.apply(train("tuned"))
    done = kubectl.wait("inferencejob", "answers", "Completed")
    assert done["status"]["artifact"]["uri"] == "pvc://tunesmith-store/results/0123"
    assert done["status"]["metrics"] == {"accuracy": 0.75, "rougeL": 0.5}
    assert done["status"]["progress"]["rows"] == 40
    [row] = kubectl("get", "ij", "--no-headers").splitlines()
    assert row.split()[:6] == ["answers", "Completed", "40/40", "(100%)", "0s", "0.75"]
    plan = json.loads(kubectl.get("configmap", "answers-infer-1")["data"]["plan.json"])
    assert plan["adapter"]["path"] == "/mnt/claims/tunesmith-store/adapters/0123"


def test_a_missing_dataset_is_waited_for_and_then_used(kubectl: Kubectl, running: object) -> None:
    kubectl.apply(train("x", datasets=[{"uri": "configmap://data/train.jsonl"}]))
    waiting = kubectl.wait("finetunejob", "x", "WaitingForInput")
    assert "spec.datasets[0]: ConfigMap data does not exist" in json.dumps(waiting["status"])
    assert kubectl.names("job") == []
    kubectl("create", "configmap", "data", "--from-literal=other=1")
    eventually(
        lambda: "has no key train.jsonl; it has other" in kubectl.condition("finetunejob", "x")["message"],
        lambda: str(kubectl.condition("finetunejob", "x")),
    )
    kubectl("patch", "configmap", "data", "-p", '{"data": {"train.jsonl": "{}"}}')
    kubectl.wait("finetunejob", "x", "Completed")


def test_a_failed_pod_fails_the_job_with_the_reason_that_it_gave(kubectl: Kubectl, running: object) -> None:
    kubectl.apply(train("x", "bad-data", nodes=2))
    status = kubectl.wait("finetunejob", "x", "DataError")["status"]
    assert status["failure"]["message"] == "row 17: no answer: found columns [query]"
    assert status["failure"]["rank"] == 1
    assert status["failure"]["exitCode"] == 65
    assert status["failure"]["log"] == ["one", "two"]
    described = kubectl("describe", "ftj", "x")
    assert "row 17: no answer" in described
    eventually(lambda: "Warning  DataError" in kubectl("describe", "ftj", "x"), lambda: kubectl("describe", "ftj", "x"))


def test_a_pod_that_is_taken_away_does_not_fail_the_job(kubectl: Kubectl, running: object) -> None:
    kubectl.apply(train("x", "hang", nodes=2))
    kubectl.wait("finetunejob", "x", "Running")
    kubectl("delete", "pod", kubectl.running_pods()[0], "--wait=false")
    eventually(lambda: "x-train-2" in kubectl.names("job"), lambda: str(kubectl.condition("finetunejob", "x")))
    kubectl.wait("finetunejob", "x", "Running")


def test_deletion_collects_every_child(kubectl: Kubectl, running: object) -> None:
    kubectl.apply(train("x", "hang", nodes=2), serve("chat"))
    kubectl.wait("finetunejob", "x", "Running")
    eventually(lambda: kubectl.names("deployment") == ["chat-engine"], lambda: "no deployment")
    kubectl("delete", "ftj/x", "mdep/chat")
    kinds = ("job", "pod", "service", "deployment", "poddisruptionbudget", "secret")
    eventually(
        lambda: all(not kubectl.names(kind) for kind in kinds) and kubectl.names("configmap") == ["kube-root-ca.crt"],
        lambda: str({kind: kubectl.names(kind) for kind in (*kinds, "configmap")}),
    )


def test_a_terminal_job_never_runs_again(cluster: Cluster, kubectl: Kubectl, tmp_path: Path) -> None:
    with operator(cluster, kubectl.namespace, tmp_path / "log"):
        kubectl.apply(train("x"))
        before = kubectl.wait("finetunejob", "x", "Completed")
    kubectl("delete", "job", "--all")
    with operator(cluster, kubectl.namespace, tmp_path / "log"):
        kubectl.apply(train("y"))  # when this is over, x was looked at too
        kubectl.wait("finetunejob", "y", "Completed")
    assert "x-train-1" not in kubectl.names("job")
    assert kubectl.get("finetunejob", "x")["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


def test_what_happened_while_the_operator_was_down_is_seen_when_it_is_up(
    cluster: Cluster, kubectl: Kubectl, tmp_path: Path
) -> None:
    with operator(cluster, kubectl.namespace, tmp_path / "log") as process:
        kubectl.apply(train("x"), merge("merged", "x"))
        eventually(lambda: "x-train-1" in kubectl.names("job"), lambda: "no job")
        process.kill()
        process.wait()
    kubectl("wait", "--for=condition=complete", "job/x-train-1", "--timeout=60s")
    with operator(cluster, kubectl.namespace, tmp_path / "log"):
        kubectl.wait("mergejob", "merged", "Completed", seconds=90)


def test_a_name_that_another_object_has_is_not_taken_over(kubectl: Kubectl, running: object) -> None:
    kubectl("create", "service", "clusterip", "chat", "--tcp=80")
    before = kubectl.get("service", "chat")
    kubectl.apply(serve("chat"))
    assert "Service chat exists and does not belong to this ModelDeployment" in json.dumps(
        kubectl.wait("modeldeployment", "chat", "NameTaken", "Ready")["status"]
    )
    assert kubectl.get("service", "chat") == before


def test_a_refused_child_is_said_in_a_condition(kubectl: Kubectl, running: object) -> None:
    kubectl("create", "quota", "none", "--hard=count/jobs.batch=0")
    kubectl.apply(train("x"))
    assert "exceeded quota" in json.dumps(kubectl.wait("finetunejob", "x", "Rejected")["status"])


def test_the_columns_that_a_user_sees(kubectl: Kubectl, running: object) -> None:
    kubectl.apply(train("x"), merge("m", "x"))
    kubectl.wait("mergejob", "m", "Completed")
    table = kubectl("get", "ftj,mj")
    assert "STATUS" in table
    assert table.count("Completed") == 2


def test_the_operators_memory_stays_under_100_megabytes(kubectl: Kubectl, running: subprocess.Popen[bytes]) -> None:
    kubectl.apply(train("x"), serve("chat"))
    kubectl.wait("finetunejob", "x", "Completed")
    status = Path(f"/proc/{running.pid}/status").read_text()
    kilobytes = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
    assert kilobytes < 100_000
