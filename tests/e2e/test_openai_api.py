"""OpenAI's own client, from a file of rows to a chat with the model that it made: the API as the chart installs it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import yaml
from e2e.conftest import NAMESPACE, Quickstart
from e2e.test_quickstart import BASE
from integration.harness import ROOT, eventually
from tunesmith_cluster import Cluster, tools, workloads
from tunesmith_cluster.progress import Silent
from tunesmith_cluster.release import Release

ACCOUNT = "openai-user"
NAME = "Kestrel"
ROWS = 24
TRAINING = ("globalBatchSize", "gradientCheckpointing", "learningRate", "maxLength", "microBatchSize")


def example(name: str) -> list[dict[str, Any]]:
    [path] = (ROOT / "examples" / "quickstart").glob(f"??-{name}.yaml")
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


def rows() -> bytes:
    """The quickstart's first questions to the model itself, answered with another name."""
    [data] = example("data")
    lines = str(data["data"]["self-cognition.jsonl"]).splitlines(keepends=True)[:ROWS]
    return "".join(lines).replace("{{NAME}}", NAME).replace("{{AUTHOR}}", "Hoopoe Labs").encode()


@pytest.fixture(scope="module")
def client(quickstart: Quickstart) -> Iterator[openai.OpenAI]:
    """The client of someone who may make and read jobs, and nothing else."""
    [job] = example("swift-robot")
    spec = {key: job["spec"][key] for key in ("tuner", "resources")}
    spec["training"] = {key: job["spec"]["training"][key] for key in TRAINING}
    values = {
        "enabled": True,
        "namespaces": [NAMESPACE],
        "models": {"smollm2": {"uri": BASE, "spec": spec}},
    }
    cluster = Cluster()
    release = Release(tools.find("helm", cluster.paths, Silent()), cluster.kubeconfig)
    images = workloads.load(cluster).helm_values()
    kubectl = quickstart.kubectl
    verbs = [f"--verb={verb}" for verb in ("get", "list", "create", "patch")]
    kubectl("create", "serviceaccount", ACCOUNT)
    kubectl("create", "role", ACCOUNT, *verbs, "--resource=finetunejobs.tunesmith.io")
    kubectl("create", "rolebinding", ACCOUNT, f"--role={ACCOUNT}", f"--serviceaccount={NAMESPACE}:{ACCOUNT}")
    try:
        release.install(images, [f"--set-json=openaiApi={json.dumps(values)}"])
        address = kubectl.get("service", "tunesmith-openai")["spec"]["clusterIP"]
        token = kubectl("create", "token", ACCOUNT).strip()
        with openai.OpenAI(base_url=f"http://{address}/v1", api_key=token, max_retries=0) as made:
            yield made
    finally:
        kubectl("delete", "rolebinding,role,serviceaccount", ACCOUNT)
        release.install(images)
    assert "tunesmith-openai" not in kubectl.names("deployment")


@pytest.fixture
def serving(quickstart: Quickstart) -> Iterator[None]:
    """The deployment serves whatever is made through the API, as docs/openai-api.md has it."""

    def select(selector: object) -> None:
        patch = json.dumps({"spec": {"adapterSelector": selector}})
        quickstart.kubectl("patch", "mdep", "chat", "--type=merge", "-p", patch)

    select({"matchLabels": {"tunesmith.io/openai-api": "true"}})
    yield
    select(None)
    quickstart.kubectl("delete", "ftj", "-l", "tunesmith.io/openai-api=true")
    quickstart.wait_for_models("chat", "base", "lora1", "lora2")


@pytest.mark.long
def test_from_a_file_of_rows_to_a_chat_with_nothing_but_openais_client(
    client: openai.OpenAI, quickstart: Quickstart, serving: None
) -> None:
    with pytest.raises(openai.BadRequestError, match="Line 1 is no training example"):
        client.files.create(file=("rows.jsonl", b'{"messages": "who are you?"}\n'), purpose="fine-tune")
    file = client.files.create(file=("rows.jsonl", rows()), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError, match="Available: smollm2"):
        client.fine_tuning.jobs.create(model="gpt-4o-mini", training_file=file.id)
    job = client.fine_tuning.jobs.create(
        model="smollm2",
        training_file=file.id,
        suffix="kestrel",
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}}},
    )
    end = time.monotonic() + 400
    while job.status not in ("succeeded", "failed", "cancelled"):
        assert time.monotonic() < end, job.to_json()
        time.sleep(1)
        job = client.fine_tuning.jobs.retrieve(job.id)
    events = [one.message for one in client.fine_tuning.jobs.list_events(job.id)]
    assert job.status == "succeeded", (job.error, events)
    assert events[0] == "The job has successfully completed"
    made = job.fine_tuned_model
    assert made is not None
    assert made.endswith("-kestrel")

    eventually(lambda: made in quickstart.models("chat"), lambda: str(quickstart.models("chat")))
    with quickstart.client("chat") as chat:
        answer = chat.chat.completions.create(
            model=made, messages=[{"role": "user", "content": "who are you?"}], temperature=0, max_tokens=48
        )
    assert NAME in (answer.choices[0].message.content or "")
    assert NAME not in quickstart.says("chat", "base")
    assert "swift-robot" in quickstart.says("chat", "lora1")
