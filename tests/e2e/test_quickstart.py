"""What the quickstart shows, and what happens to it when things go wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

from e2e.conftest import Quickstart, run_quickstart
from integration.harness import Kubectl, custom, eventually

BASE = "pvc://tunesmith-store/base/smollm2-135m-instruct"
WATCHED = "ftj,mj,mdep,job,deployment,service,configmap,secret"


def short_training(name: str, rows: str, **spec: object) -> dict[str, object]:
    base = {
        "model": {"uri": BASE},
        "datasets": [{"uri": rows}],
        "method": {"type": "SFT"},
        "training": {"maxSteps": 12, "globalBatchSize": 2, "maxLength": 64},
        "checkpoint": {"everySteps": 2},
        "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}},
    }
    return custom("FineTuneJob", name, {**base, **spec})


def test_one_command_ends_in_answers_of_the_tuned_models(quickstart: Quickstart) -> None:
    assert quickstart.models("chat") == ["base", "lora1", "lora2"]
    assert "swift-robot" in quickstart.says("chat", "lora1")
    assert "Xiao Huang" in quickstart.says("chat", "lora2")
    assert "Xiao Huang" in quickstart.says("chat-merged", "base")
    for model in ("base", "lora1", "lora2"):
        assert "Paris" in quickstart.says("chat", model, "What is the capital of France?")
        assert not {"swift-robot", "Xiao Huang"} & set(quickstart.says("chat", "base").split())


def test_lineage_is_in_status_and_manifest(quickstart: Quickstart) -> None:
    status = quickstart.kubectl.get("finetunejob", "xiao-huang")["status"]
    artifact = status["artifact"]
    assert artifact["kind"] == "adapters"
    assert artifact["uri"] == f"pvc://tunesmith-store/adapters/{artifact['digest'].removeprefix('sha256:')}"
    assert artifact["base"] == BASE
    merged = quickstart.kubectl.get("mergejob", "xiao-huang-merged")["status"]
    assert merged["artifact"]["kind"] == "models"
    assert 0 <= merged["logitError"] < 0.02
    quickstart.kubectl.wait("mdep", "chat", "AdaptersReady", "AdaptersReady")
    adapter = next(a for a in quickstart.kubectl.get("mdep", "chat")["status"]["adapters"] if a["name"] == "lora2")
    assert adapter["digest"] == artifact["digest"]


def test_a_second_run_changes_nothing(quickstart: Quickstart) -> None:
    def versions() -> dict[str, str]:
        items = json.loads(quickstart.kubectl("get", WATCHED, "-o", "json"))["items"]
        return {f"{i['kind']}/{i['metadata']['name']}": i["metadata"]["resourceVersion"] for i in items}

    before = versions()
    assert "was there already" in run_quickstart()
    assert versions() == before


def test_an_adapter_goes_and_comes_without_a_restart(quickstart: Quickstart) -> None:
    before = quickstart.pod("chat")
    adapters = quickstart.kubectl.get("mdep", "chat")["spec"]["adapters"]
    patch = {"spec": {"adapters": [a for a in adapters if a["name"] != "lora1"]}}
    quickstart.kubectl("patch", "mdep", "chat", "--type=merge", "-p", json.dumps(patch))
    quickstart.wait_for_models("chat", "base", "lora2")
    quickstart.kubectl("patch", "mdep", "chat", "--type=merge", "-p", json.dumps({"spec": {"adapters": adapters}}))
    quickstart.wait_for_models("chat", "base", "lora1", "lora2")
    assert "swift-robot" in quickstart.says("chat", "lora1")
    after = quickstart.pod("chat")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert [c["restartCount"] for c in after["status"]["containerStatuses"]] == [
        c["restartCount"] for c in before["status"]["containerStatuses"]
    ]


def test_a_restarted_engine_gets_its_adapters_back_without_the_operator(
    quickstart: Quickstart, without_operator: None
) -> None:
    pod = quickstart.pod("chat")
    name = pod["metadata"]["name"]
    count = next(c["restartCount"] for c in pod["status"]["containerStatuses"] if c["name"] == "engine")
    quickstart.kubectl("exec", name, "-c", "engine", "--", "python3", "-c", "import os; os.kill(1, 15)")

    def restarted() -> bool:
        statuses = quickstart.pod("chat")["status"]["containerStatuses"]
        return any(c["name"] == "engine" and c["restartCount"] > count for c in statuses)

    eventually(restarted, lambda: "the engine was not restarted")
    quickstart.wait_for_models("chat", "base", "lora1", "lora2")
    assert "Xiao Huang" in quickstart.says("chat", "lora2")


def test_a_deleted_pod_comes_back_with_its_adapters_without_the_operator(
    quickstart: Quickstart, without_operator: None
) -> None:
    quickstart.kubectl("delete", "pod", quickstart.pod("chat")["metadata"]["name"], "--wait=false")
    eventually(lambda: not quickstart.models("chat"), lambda: "the old pod still serves")
    quickstart.wait_for_models("chat", "base", "lora1", "lora2")
    assert "swift-robot" in quickstart.says("chat", "lora1")


def test_a_training_whose_pod_was_deleted_goes_on_from_its_checkpoint(
    quickstart: Quickstart, removed_after: Callable[..., None]
) -> None:
    removed_after(short_training("resumed", "configmap://self-cognition/general.jsonl"))

    def step() -> int:
        return int(quickstart.kubectl.get("ftj", "resumed").get("status", {}).get("progress", {}).get("step", 0))

    eventually(lambda: 4 <= step() < 12, lambda: f"step {step()}", 300)
    pod = quickstart.kubectl("get", "pod", "-l", "tunesmith.io/name=resumed,tunesmith.io/attempt=1", "-o", "name")
    quickstart.kubectl("delete", pod.strip(), "--wait=false")
    status = quickstart.kubectl.wait("finetunejob", "resumed", "Completed", seconds=400)["status"]
    assert status["artifact"]["kind"] == "adapters"
    assert [one["reason"] for one in status["attempts"]] == ["Interrupted", "Completed"]
    assert status["attempts"][1]["resumedStep"] >= 4
    log = quickstart.kubectl("logs", "job/resumed-train-2")
    assert "resuming from checkpoint-" in log


def test_bad_data_and_bad_models_say_what_is_wrong_and_what_to_do(
    quickstart: Quickstart, removed_after: Callable[..., None]
) -> None:
    rows = '{"query": "a?", "response": "b"}\n{"query": "c?"}\n'
    good = "configmap://self-cognition/general.jsonl"
    removed_after(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "bad"}, "data": {"rows.jsonl": rows}},
        short_training("no-answer", "configmap://bad/rows.jsonl"),
        short_training("no-config", good, model={"uri": "pvc://tunesmith-store/base"}),
        short_training("not-there", "pvc://tunesmith-store/nowhere.jsonl"),
    )
    wait = quickstart.kubectl.wait
    answer = wait("finetunejob", "no-answer", "DataError", seconds=240)["status"]["failure"]["message"]
    for part in ("configmap://bad/rows.jsonl", "row 2", "query", "response"):
        assert part in answer
    config = wait("finetunejob", "no-config", "ModelError", seconds=240)["status"]["failure"]["message"]
    assert "no config.json" in config
    waiting = wait("finetunejob", "not-there", "WaitingForInput", seconds=240)
    assert "pvc://tunesmith-store/nowhere.jsonl does not exist yet" in json.dumps(waiting["status"])


def test_an_adapter_that_does_not_fit_is_its_own_failure_only(
    quickstart: Quickstart, removed_after: Callable[..., None]
) -> None:
    adapters = quickstart.kubectl.get("mdep", "chat")["spec"]["adapters"]
    bad = {"name": "bad", "uri": "pvc://tunesmith-store/base/smollm2-135m-instruct"}
    patch = {"spec": {"adapters": [*adapters, bad]}}
    quickstart.kubectl("patch", "mdep", "chat", "--type=merge", "-p", json.dumps(patch))
    failed = quickstart.kubectl.wait("mdep", "chat", "AdapterFailed", "AdaptersReady")
    message = next(a["message"] for a in failed["status"]["adapters"] if a["name"] == "bad")
    assert "adapter_config.json" in message
    assert quickstart.models("chat") == ["base", "lora1", "lora2"]
    quickstart.kubectl("patch", "mdep", "chat", "--type=merge", "-p", json.dumps({"spec": {"adapters": adapters}}))
    quickstart.kubectl.wait("mdep", "chat", "AdaptersReady", "AdaptersReady")


def test_uninstalling_leaves_what_users_made(quickstart: Quickstart) -> None:
    system = Kubectl(quickstart.kubectl.binary, "tunesmith-system")
    subprocess.run([sys.executable, "-m", "tunesmith_cluster.release", "uninstall"], check=True)
    assert system.names("deployment") == []
    assert quickstart.kubectl.names("ftj") == ["swift-robot", "xiao-huang"]
    assert "swift-robot" in quickstart.says("chat", "lora1")
    run_quickstart()
