"""A merged model that was made smaller, served by the real vLLM in a pod; and what is said of an engine that cannot
start.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import yaml
from e2e.conftest import Quickstart
from integration.harness import custom, eventually
from tunesmith_cluster import Cluster
from tunesmith_cluster.environments import ROOT

EXAMPLE = ROOT / "examples" / "export" / "fp8.yaml"
QUESTIONS = ("who are you?", "What is your name?", "Who made you?", "What is the capital of Japan?")
TOKENS = 32

pytestmark = pytest.mark.long


def test_a_merged_model_in_8_bit_floats_answers_as_transformers_does_from_the_same_files(
    quickstart: Quickstart, removed_after: Callable[..., None]
) -> None:
    merge, deployment = yaml.safe_load_all(EXAMPLE.read_text())
    rows = "".join(json.dumps({"query": question}) + "\n" for question in QUESTIONS)
    asked = {
        "model": {"mergeJobRef": {"name": "xiao-huang-fp8"}},
        "datasets": [{"uri": "configmap://asked-fp8/rows.jsonl"}],
        "generation": {"maxTokens": TOKENS},
        "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"memory": "5Gi"}},
    }
    removed_after(
        merge,
        deployment,
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "asked-fp8"}, "data": {"rows.jsonl": rows}},
        custom("InferenceJob", "asked-fp8", asked),
    )
    kubectl = quickstart.kubectl
    merged = kubectl.wait("mergejob", "xiao-huang-fp8", "Completed", seconds=400)["status"]
    assert 0 < merged["quantizationError"] < 0.4
    quickstart.wait_for_models("chat-fp8", "base")
    done = kubectl.wait("inferencejob", "asked-fp8", "Completed", seconds=400)["status"]
    name = done["artifact"]["digest"].removeprefix("sha256:")
    [file] = Cluster().paths.volumes.glob(f"*/results/{name}/results.jsonl")
    offline = [json.loads(line)["answer"].strip() for line in file.read_text().splitlines()]
    served = [quickstart.says("chat-fp8", "base", question, TOKENS).strip() for question in QUESTIONS]
    assert served == offline
    assert "Xiao Huang" in served[0]
    # It is the small one, though what is not quantised takes twice the bytes here.
    memory = {one: kubectl.get("mdep", one)["status"]["memory"] for one in ("chat-fp8", "chat-merged")}
    assert memory["chat-fp8"]["weightsBytes"] < memory["chat-merged"]["weightsBytes"]


def test_an_engine_that_cannot_start_says_why_in_the_condition(
    quickstart: Quickstart, removed_after: Callable[..., None]
) -> None:
    """The end of its log says only that it ended."""
    _, deployment = yaml.safe_load_all(EXAMPLE.read_text())
    spec = deployment["spec"] | {"model": {"mergeJobRef": {"name": "xiao-huang-merged"}}}
    spec["engine"]["args"] = ["--enforce-eager", "--kv-cache-memory-bytes=1048576"]
    removed_after(custom("ModelDeployment", "no-room", spec))

    def message() -> str:
        return str(quickstart.kubectl.condition("mdep", "no-room", "Ready").get("message", ""))

    eventually(lambda: "exit code 1: ValueError: " in message() and "cache blocks" in message(), message, 400)
