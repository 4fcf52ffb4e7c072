"""The command line and the Python client, against a real API server and with jobs that an operator runs."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from integration.harness import ROOT, Kubectl, eventually, merge, serve, step_reached, train
from tunesmith import (
    AsyncClient,
    Client,
    Conflict,
    FineTuneJob,
    Invalid,
    JobFailed,
    LogEntry,
    MergeJob,
    NotFound,
    WaitTimeout,
)
from tunesmith.api.kinds import MODELS, plural
from tunesmith.cli.app import app
from tunesmith_cluster import Cluster
from typer.testing import CliRunner, Result

Call = Callable[..., Result]


@pytest.fixture
def call(kubectl: Kubectl, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs a command in the test's namespace."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str, code: int = 0, namespace: str | None = None, stdin: str | None = None) -> Result:
        result = CliRunner().invoke(app, [*arguments, "-n", namespace or kubectl.namespace], input=stdin)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result

    return run


@pytest.fixture
def python(kubectl: Kubectl) -> Iterator[Client]:
    with Client(kubectl.namespace) as client:
        yield client


def write(folder: Path, *bodies: dict[str, Any]) -> str:
    path = folder / "resources.yaml"
    path.write_text(yaml.safe_dump_all(bodies))
    return str(path)


def steps(name: str, number: int, milliseconds: int = 50, **more: Any) -> dict[str, Any]:
    return train(name, f"steps-{milliseconds}", training={"maxSteps": number, "globalBatchSize": 2}, **more)


def test_a_chain_from_a_file_to_curves(call: Call, running: object, tmp_path: Path) -> None:
    path = write(tmp_path, steps("one", 20, nodes=2), steps("two", 30), merge("merged", "one"))
    output = call("submit", path, "--wait").output
    assert "MergeJob merged: WaitingForReference" in output
    assert "MergeJob merged: Completed" in output
    table = call("get").stdout
    assert re.search(r"FineTuneJob +one +Completed +20/20 \(100%\)", table)
    assert "MergeJob" not in call("get", "ftj").stdout
    assert "artifact  pvc://tunesmith-store/models/0123" in call("get", "mj/merged").stdout

    lines = call("logs", "one").stdout.splitlines()
    assert "rank 0 step 20/20  loss 0.05  lr 1e-4  10 tokens/s  peak 0.10 GiB  eta 1s" in lines
    assert "rank 1 Completed" in "\n".join(lines)
    assert "rank 0" not in call("logs", "one", "--rank", "1").stdout
    assert call("logs", "two", "--tail", "1").stdout.startswith("Completed")

    [curve] = json.loads(call("plot", "one", "-o", "json").stdout)
    assert curve["steps"] == list(range(1, 21))
    assert curve["loss"][9] == pytest.approx(0.1)
    assert "step" in call("plot", "one", "two").stdout
    call("plot", "one", "two", "--png", str(tmp_path / "loss.png"))
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "there are learning_rate, loss, tokens_per_second" in call("plot", "one", "--metric", "no", code=4).output
    compared = json.loads(call("compare", "one", "two", "-o", "json").stdout)
    assert [(one["name"], one["nodes"]) for one in compared] == [("one", 2), ("two", 1)]
    assert compared[1]["last loss"] == pytest.approx(1 / 30, rel=1e-4)
    assert re.search(r"nodes +2 +1 +\*", call("compare", "one", "two").stdout)


def test_suspend_resume_retry_and_delete(call: Call, kubectl: Kubectl, running: object, tmp_path: Path) -> None:
    call("submit", write(tmp_path, steps("x", 200, 100)))
    step_reached(kubectl, "x", 3)
    assert "is not over: Running" in call("retry", "x", code=5).output
    call("suspend", "x")
    kubectl.wait("ftj", "x", "Suspended")
    assert "spec.suspend" in call("explain", "x").stdout
    call("resume", "x")
    kubectl.wait("ftj", "x", "Running")
    # What was logged before and after is one curve, without a gap.
    made = eventually(
        lambda: kubectl.get("ftj", "x")["status"]["attempts"][-1].get("resumedStep"),
        lambda: kubectl("describe", "ftj", "x"),
    )
    step_reached(kubectl, "x", made + 3)
    [curve] = json.loads(call("plot", "x", "-o", "json").stdout)
    assert curve["steps"][: made + 3] == list(range(1, made + 4))
    assert "FineTuneJob x deleted" in call("delete", "x").stdout
    assert "there is no resource x" in call("get", "x", code=4).output
    call("submit", write(tmp_path, steps("y", 2)), "--wait")
    before = kubectl.get("ftj", "y")["metadata"]["uid"]
    call("retry", "y", "--wait")
    assert kubectl.get("ftj", "y")["metadata"]["uid"] != before
    call("retry", "y", "--as", "y2")
    assert kubectl.get("ftj", "y2")["spec"]["training"]["maxSteps"] == 2
    assert "is over: Completed" in call("suspend", "y", code=2).output


def test_a_job_that_fails_ends_the_watch_with_its_message(call: Call, running: object, tmp_path: Path) -> None:
    output = call("submit", write(tmp_path, train("x", "bad-data", nodes=2)), "--wait", code=6).output
    assert "FineTuneJob x failed: DataError: row 17: no answer: found columns [query]" in output
    assert "tunesmith explain DataError" in output
    assert "mend the row" in call("explain", "x").stdout
    assert "  | two" in call("get", "x").stdout


def test_mistakes_are_one_message_each(call: Call, kubectl: Kubectl, tmp_path: Path) -> None:
    path = write(tmp_path, steps("learner", 3))
    call("submit", path)
    elsewhere = call("get", "learner", namespace="default", code=4).output
    assert f"there is one in namespace {kubectl.namespace}" in elsewhere
    assert "did you mean learner?" in call("get", "ftj/lerner", code=4).output
    assert "namespace nowhere does not exist" in call("submit", path, namespace="nowhere", code=4).output
    # A rule between fields is the API server's, and so is what is fixed.
    rule = call("submit", path, "--set", "elastic.minNodes=5", code=2).output
    assert "elastic.minNodes must be at most nodes" in rule
    assert "spec" in call("submit", path, "--set", "training.maxSteps=9", code=2).output
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=steps("learner", 3, suspend=True))
    assert "--force takes the fields over" in call("submit", path, "--set", "suspend=false", code=5).output
    call("submit", path, "--set", "suspend=false", "--force")
    kubectl.apply(merge("learner", "x"))
    assert "say which: finetunejob/learner and mergejob/learner" in call("get", "learner", code=5).output
    assert "is no job" in (kubectl.apply(serve("chat")) or call("suspend", "chat", code=2).output)
    assert "has no pod with a log" in call("logs", "ftj/learner", code=4).output


def limited(cluster: Cluster, kubectl: Kubectl, folder: Path, rules: list[dict[str, Any]]) -> str:
    """A kubeconfig of somebody who may do only this in the namespace."""
    kubectl("create", "serviceaccount", "guest")
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "guest"}, "rules": rules}
    kubectl.apply(role)
    kubectl("create", "rolebinding", "guest", "--role=guest", f"--serviceaccount={kubectl.namespace}:guest")
    token = kubectl("create", "token", "guest").strip()
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
    path = folder / "guest"
    path.write_text(yaml.safe_dump(config))
    return str(path)


OURS = {"apiGroups": ["tunesmith.io"], "resources": [plural(kind) for kind in MODELS]}


def test_who_may_only_read_is_told_so(cluster: Cluster, call: Call, kubectl: Kubectl, tmp_path: Path) -> None:
    config = limited(cluster, kubectl, tmp_path, [{**OURS, "verbs": ["get", "list"]}])
    call("submit", write(tmp_path, steps("x", 3)))
    assert "FineTuneJob" in call("get", "--kubeconfig", config).stdout
    for command in (["delete", "x"], ["suspend", "x"], ["submit", str(tmp_path / "resources.yaml")], ["logs", "x"]):
        output = call(*command, "--kubeconfig", config, code=5).output
        assert "forbidden" in output
        assert "ask for the role `edit`" in output
    findings = json.loads(call("doctor", "--kubeconfig", config, "-o", "json", code=1).stdout)
    refused = next(one for one in findings if one["check"].startswith("rights"))
    assert "you may not create finetunejobs" in refused["found"]


def test_doctor_sees_what_is_there(call: Call, kubectl: Kubectl, running: object) -> None:
    result = CliRunner().invoke(app, ["doctor", "-n", kubectl.namespace, "-o", "json"])
    found = {one["check"]: one for one in json.loads(result.stdout)}
    assert found["Kubernetes"]["verdict"] == "ok"
    for resources in map(plural, MODELS):
        assert found[f"CRD {resources}.tunesmith.io"] == {
            "check": f"CRD {resources}.tunesmith.io", "verdict": "ok", "found": "v1alpha1", "todo": ""
        }  # fmt: skip
    assert found[f"rights in {kubectl.namespace}"]["verdict"] == "ok"
    assert found["store"]["verdict"] == "ok"
    assert found["GPUs"]["found"] == "no node has one"


def test_a_cluster_without_the_kinds_is_told_so(
    cluster: Cluster, call: Call, kubectl: Kubectl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kinds of another group stand for kinds that are not installed; nobody's CRDs are removed for it."""
    from tunesmith.kube import client

    for kind in MODELS:
        monkeypatch.setitem(client.RESOURCES, kind, ("/apis/not.installed/v1", client.RESOURCES[kind][1]))
    assert "does not know tunesmith's kinds" in call("get", code=3).output
    assert "does not know tunesmith's kinds" in call("submit", "-", stdin=json.dumps(steps("x", 1)), code=3).output


def test_python_from_submit_to_curve(python: Client, running: object) -> None:
    job = python.submit(FineTuneJob.of("x", **steps("x", 30)["spec"]))
    assert job.reason == "Pending"
    lines = list(python.stream_metrics(job))
    assert [line.step for line in lines] == list(range(1, 31))
    assert lines[-1].loss == pytest.approx(1 / 30, rel=1e-4)
    done = python.wait(job, 30)
    assert isinstance(done, FineTuneJob)
    assert done.status.artifact
    assert "Completed" in done._repr_html_()
    assert "<svg" in python.curve(job)._repr_html_()
    assert [one.name for one in python.list(FineTuneJob)] == ["x"]
    entries = list(python.logs(job, rank=0))
    assert isinstance(entries[0], LogEntry)
    assert entries == sorted(entries, key=lambda entry: entry.time)


def test_python_raises_what_went_wrong(python: Client, running: object) -> None:
    job = python.submit(FineTuneJob.of("x", **train("x", "bad-data", nodes=2)["spec"]))
    with pytest.raises(JobFailed, match="DataError: row 17: no answer") as caught:
        python.wait(job, 60)
    assert caught.value.failure
    assert caught.value.failure.rank == 1
    with pytest.raises(NotFound, match="there is no MergeJob x"):
        python.get(MergeJob, "x")
    with pytest.raises(Invalid, match="at most nodes"):
        python.submit({**steps("z", 1), "spec": {**steps("z", 1)["spec"], "elastic": {"minNodes": 4}}}, dry_run=True)
    hanging = python.submit(FineTuneJob.of("y", **train("y", "hang")["spec"]))
    with pytest.raises(WaitTimeout, match="FineTuneJob y is not there after 1 s"):
        python.wait(hanging, 1)
    with pytest.raises(Conflict, match="is not over"):
        python.retry(hanging)


@pytest.mark.long
async def test_many_jobs_are_waited_for_at_once(kubectl: Kubectl, running: object) -> None:
    async with AsyncClient(kubectl.namespace) as client:
        jobs = [await client.submit(FineTuneJob.of(f"x{n}", **steps("x", 3)["spec"])) for n in range(3)]
        done = await asyncio.gather(*(client.wait(job, 90) for job in jobs))
    assert [one.reason for one in done] == ["Completed"] * 3


def test_a_followed_log_goes_on_into_the_next_attempt(python: Client, kubectl: Kubectl, running: object) -> None:
    job = python.submit(FineTuneJob.of("x", **steps("x", 60, 100, checkpoint={"everySteps": 5})["spec"]))
    seen: list[LogEntry] = []
    for entry in python.logs(job, follow=True):
        seen.append(entry)
        if entry.text.startswith("step 8/") and entry.attempt == 1:
            kubectl("delete", "pod", kubectl.running_pods()[0], "--wait=false")
    assert {entry.attempt for entry in seen} == {1, 2}
    assert "Completed" in seen[-1].text
    eventually(lambda: python.refresh(job).done, lambda: "not done")


def test_the_examples_of_the_python_page_run(
    python: Client, running: object, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    names: dict[str, Any] = {"MODEL": "file:///behave/steps-20", "DATA": "file:///data.jsonl"}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        code = block.replace("Client()", f"Client({python.namespace!r})")
        exec(compile(code, "docs/python.md", "exec"), names)
    names["client"].close()
    output = capsys.readouterr().out
    assert "spec.method.type: input should be" in output
    assert "20 0.05 10.0 {}" in output
    assert "pvc://tunesmith-store/adapters/0123" in output


def test_the_example_notebook_runs(kubectl: Kubectl, running: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is shown; with TUNESMITH_WRITE=1, its outputs are written into the file."""
    import nbclient
    import nbformat

    monkeypatch.setenv("TUNESMITH_MODEL", "file:///behave/steps-100")
    monkeypatch.setenv("TUNESMITH_NAMESPACE", kubectl.namespace)
    path = ROOT / "examples" / "notebooks" / "first-job.ipynb"
    notebook = nbformat.read(path, 4)
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = json.dumps([cell.get("outputs") for cell in notebook.cells])
    assert "step 20  loss 0.05" in outputs
    assert "<svg" in outputs
    assert "Completed" in outputs
    if os.environ.get("TUNESMITH_WRITE"):
        nbformat.write(notebook, path)
