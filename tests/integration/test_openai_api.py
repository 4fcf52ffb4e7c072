"""OpenAI's own client drives the fine-tuning API, with tokens of accounts that may do this or that."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from integration.harness import ROOT, Kubectl, eventually, train
from tunesmith_cluster import Cluster

ROWS = b"".join(
    json.dumps({"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "yes"}]}).encode()
    + b"\n"
    for n in range(12)
)
TABLE = {
    "small": {"uri": "file:///behave/steps-50", "spec": {"training": {"maxSteps": 20}}},
    "slow": {"uri": "file:///behave/steps-100", "spec": {"training": {"maxSteps": 400}}},
    "bad": {"uri": "file:///behave/bad-data", "spec": {"nodes": 2}},
}
VERBS = {"trainer": ["get", "list", "create", "patch"], "reader": ["get", "list"]}


@dataclass(frozen=True)
class Service:
    url: str
    tokens: dict[str, str]

    def client(self, account: str = "trainer") -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=self.tokens[account], max_retries=0)


@pytest.fixture
def service(cluster: Cluster, kubectl: Kubectl, tmp_path: Path) -> Iterator[Service]:
    """The process as the chart runs it: with the API server's address and authority, and no credentials."""
    config = yaml.safe_load(cluster.kubeconfig.read_text())["clusters"][0]["cluster"]
    authority = tmp_path / "ca.crt"
    if "certificate-authority-data" in config:
        authority.write_bytes(base64.b64decode(config["certificate-authority-data"]))
    else:
        authority = Path(config["certificate-authority"])
    (tmp_path / "models.yaml").write_text(yaml.safe_dump(TABLE))
    tokens = {}
    for name, verbs in VERBS.items():
        kubectl("create", "serviceaccount", name)
        kubectl("create", "role", name, *(f"--verb={verb}" for verb in verbs), "--resource=finetunejobs.tunesmith.io")
        kubectl("create", "rolebinding", name, f"--role={name}", f"--serviceaccount={kubectl.namespace}:{name}")
        tokens[name] = kubectl("create", "token", name).strip()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    values = {"namespace": kubectl.namespace, "models": tmp_path / "models.yaml", "folder": tmp_path / "openai",
              "server": config["server"], "authority": authority, "port": port}  # fmt: skip
    environment = {f"TUNESMITH_OPENAI_{name.upper()}": str(value) for name, value in values.items()}
    inherited = {key: value for key, value in os.environ.items() if key != "KUBECONFIG"}
    log = (tmp_path / "api.log").open("wb")
    command = [sys.executable, "-m", "tunesmith.openai_api"]
    process = subprocess.Popen(command, env={**inherited, **environment}, stdout=log, stderr=subprocess.STDOUT)
    try:
        eventually(lambda: answers(port), lambda: (tmp_path / "api.log").read_text())
        yield Service(f"http://127.0.0.1:{port}/v1", {**tokens, "stranger": "nonsense"})
    finally:
        process.terminate()
        process.wait(20)
        log.close()
    assert "Traceback" not in (tmp_path / "api.log").read_text()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def until(client: openai.OpenAI, id_: str, status: str) -> Any:
    def reached() -> Any:
        job = client.fine_tuning.jobs.retrieve(id_)
        return job if job.status == status else None

    return eventually(reached, lambda: client.fine_tuning.jobs.retrieve(id_).to_json())


def test_the_pages_example_from_rows_to_a_model(
    service: Service,
    kubectl: Kubectl,
    running: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "rows.jsonl").write_bytes(ROWS)
    monkeypatch.chdir(tmp_path)
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "openai-api.md").read_text(), re.DOTALL)
    code = block.replace('open("rows.jsonl", "rb")', "ROWS")
    names: dict[str, Any] = {
        "URL": service.url, "TOKEN": service.tokens["trainer"], "ROWS": ("rows.jsonl", ROWS)
    }  # fmt: skip
    exec(compile(code, "docs/openai-api.md", "exec"), names)
    job = names["job"]
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model == job.id
    assert job.id.endswith("-support")
    assert job.finished_at >= job.created_at
    output = capsys.readouterr().out
    assert output.startswith(f"info Created fine-tuning job: {job.id}\ninfo Attempt 1 began on 1 node")
    assert "info The job has successfully completed" in output
    made = kubectl.get("ftj", job.id)
    assert made["spec"]["training"]["globalBatchSize"] == 8
    stored = made["spec"]["datasets"][0]["uri"].removeprefix("pvc://tunesmith-store/openai/")
    assert (tmp_path / "openai" / stored).read_bytes() == ROWS
    client = names["client"]
    assert [one.id for one in client.models.list()] == [*sorted(TABLE), job.id]
    assert client.models.retrieve(job.id).owned_by == kubectl.namespace
    assert client.files.delete(names["rows"].id).deleted
    client.close()


def test_pause_resume_cancel_pages_and_failures(service: Service, kubectl: Kubectl, running: object) -> None:
    kubectl.apply(train("not-ours", "hang", memory={"check": "Disabled"}))
    with service.client() as client, service.client("reader") as reader:
        jobs = client.fine_tuning.jobs
        rows = client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune")
        slow = jobs.create(model="slow", training_file=rows.id, seed=5, metadata={"team": "b"})
        bad = jobs.create(model="bad", training_file=rows.id)
        assert (slow.seed, slow.status) == (5, "validating_files")
        assert slow.method is not None
        assert slow.method.type == "supervised"

        failed = until(client, bad.id, "failed")
        assert failed.error.code == "DataError"
        assert failed.error.param == "training_file"
        assert "row 17" in failed.error.message
        assert jobs.list_events(bad.id).data[0].level == "error"

        until(client, slow.id, "running")
        eventually(lambda: any(one.data for one in jobs.list_events(slow.id)), lambda: "no metrics")
        with pytest.raises(openai.ConflictError, match="is used by"):
            client.files.delete(rows.id)
        jobs.pause(slow.id)
        kubectl.wait("ftj", slow.id, "Suspended")
        assert jobs.retrieve(slow.id).status == "queued"
        assert any("paused" in one.message for one in jobs.list_events(slow.id, limit=5))
        jobs.resume(slow.id)
        until(client, slow.id, "running")
        # The checkpoint that the pause made is known once a pod has told of it.
        [checkpoint] = eventually(lambda: list(jobs.checkpoints.list(slow.id)), lambda: "no checkpoint")
        assert checkpoint.step_number > 0
        assert checkpoint.fine_tuning_job_id == slow.id

        assert {one.id for one in jobs.list(limit=1)} == {slow.id, bad.id}  # page after page
        assert [one.id for one in reader.fine_tuning.jobs.list(metadata={"team": "b"})] == [slow.id]
        for attempt in (lambda: reader.fine_tuning.jobs.cancel(slow.id), lambda: reader.files.list()):
            with pytest.raises(openai.PermissionDeniedError):
                attempt()
        with service.client("stranger") as stranger, pytest.raises(openai.AuthenticationError):
            stranger.fine_tuning.jobs.list()

        assert jobs.cancel(slow.id).status == "cancelled"
        kubectl.wait("ftj", slow.id, "Suspended")
        assert jobs.retrieve(slow.id).finished_at
        with pytest.raises(openai.BadRequestError, match="its status is cancelled"):
            jobs.resume(slow.id)
        with pytest.raises(openai.NotFoundError, match="No such fine-tuning job"):
            jobs.retrieve("not-ours")
        with pytest.raises(openai.BadRequestError, match="Available: bad, slow, small"):
            jobs.create(model="gpt-4o-mini", training_file=rows.id)
        with pytest.raises(openai.BadRequestError, match="does not fit method dpo"):
            jobs.create(model="small", training_file=rows.id, method={"type": "dpo"})
        client.files.delete(rows.id)


def test_the_api_server_takes_every_method(service: Service, kubectl: Kubectl) -> None:
    """No operator works here: what is seen is that the kind's rules hold for what is made."""
    asked = {"messages": [{"role": "user", "content": "2+2?"}]}
    pair = {
        "input": asked,
        "preferred_output": [{"role": "assistant", "content": "4"}],
        "non_preferred_output": [{"role": "assistant", "content": "5"}],
    }
    grader = {"type": "string_check", "name": "same", "operation": "eq",
              "input": "{{sample.output_text}}", "reference": "{{item.solution}}"}  # fmt: skip
    with service.client() as client:
        for row, method, type_ in (
            (pair, {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2}}}, "DPO"),
            ({**asked, "solution": "4"}, {"type": "reinforcement", "reinforcement": {"grader": grader}}, "GRPO"),
        ):
            data = (json.dumps(row) + "\n").encode()
            file = client.files.create(file=("rows.jsonl", data), purpose="fine-tune")
            job = client.fine_tuning.jobs.create(
                model="small", training_file=file.id, validation_file=file.id, method=method
            )  # type: ignore[call-overload]
            assert job.method is not None
            assert job.method.type == method["type"]
            assert kubectl.get("ftj", job.id)["spec"]["method"]["type"] == type_
