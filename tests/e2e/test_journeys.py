"""From a dataset to a chat as an ML engineer goes: with the command line alone, with Python alone, and with a browser
alone. Mistakes are made on the way, and mended by what the message about each says.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from console.browse import browse, pictures
from e2e.conftest import NAMESPACE, Quickstart
from e2e.journey import (
    ENGINE,
    NO_ANSWER,
    QUESTION,
    SERVING,
    TRAINER,
    TRAINING,
    UNKNOWN,
    config_map,
    mapping,
    rows,
)
from e2e.test_quickstart import BASE
from integration.harness import Kubectl, eventually
from tunesmith import Client, FineTuneJob, Invalid, JobFailed, ModelDeployment, NotServed
from tunesmith_cluster import Cluster, console, tools, workloads
from tunesmith_cluster.progress import Silent
from tunesmith_cluster.release import CHART
from tunesmith_cluster.release import NAMESPACE as SYSTEM

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tunesmith(quickstart: Quickstart, tmp_path: Path) -> Iterator[Run]:
    """The command, in a folder of the user's own. What is made is called kestrel."""

    def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tunesmith.cli", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=400)
        print("$ tunesmith", *arguments, "\n", done.stdout, done.stderr)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    yield run
    quickstart.kubectl("delete", "--ignore-not-found", "mdep/kestrel", "ftj/kestrel", "configmap/kestrel-data")


def test_with_nothing_but_the_command_line(tunesmith: Run, quickstart: Quickstart, tmp_path: Path) -> None:
    tunesmith("init", "SFT", "--name", "kestrel", "-f", "job.yaml")
    file = tmp_path / "job.yaml"
    job = yaml.safe_load(file.read_text())

    def write() -> None:
        file.write_text(yaml.safe_dump_all([config_map("kestrel-data", rows("Kestrel")), job], sort_keys=False))

    job["spec"]["model"]["uri"] = BASE
    job["spec"]["resources"] = TRAINER
    training = {**TRAINING, "learning_rate": TRAINING["learningRate"]}
    del training["learningRate"]
    job["spec"]["training"] = training
    write()
    # A misspelt field is found before anything is sent.
    refused = tunesmith("submit", "job.yaml", code=2).stderr
    [(wrong, right)] = re.findall(UNKNOWN, refused)
    training[right] = training.pop(wrong)
    write()
    assert "learningRate: 0.001" in tunesmith("submit", "job.yaml", "--dry-run").stdout
    # A column that is not known is found by the trainer.
    assert quickstart.kubectl.names("finetunejob") == ["swift-robot", "xiao-huang"], "nothing was made so far"
    failed = tunesmith("submit", "job.yaml", "--wait", code=6).stderr
    field, column = mapping(failed)
    assert "`tunesmith explain DataError`" in failed
    assert "DataError" in tunesmith("explain", "DataError").stdout
    job["spec"]["datasets"][0]["columns"] = {field: column}
    write()
    # What has begun is fixed, and the message says what to do.
    assert "cannot be changed" in tunesmith("submit", "job.yaml", code=2).stderr
    tunesmith("delete", "kestrel")
    tunesmith("submit", "job.yaml")
    # It may be deployed before it is trained: the adapter joins.
    changes = [f"engine={json.dumps(ENGINE)}", f"resources={json.dumps(SERVING)}"]
    settings = [part for one in changes for part in ("--set", one)]
    tunesmith("deploy", "kestrel", "--model", BASE, "--adapter", "me=kestrel", "--gpus", "0", *settings)
    watched = tunesmith("watch", "ftj/kestrel", "mdep/kestrel", "--timeout", "300").stdout
    assert "FineTuneJob kestrel: Completed" in watched

    made = json.loads(tunesmith("get", "ftj/kestrel", "-o", "json").stdout)
    assert made["status"]["artifact"]["uri"].startswith("pvc://tunesmith-store/adapters/")
    [curve] = json.loads(tunesmith("plot", "kestrel", "-o", "json").stdout)
    assert curve["steps"][-1] == TRAINING["maxSteps"]
    assert curve["loss"][-1] < curve["loss"][0] / 2
    assert "loss" in tunesmith("plot", "kestrel").stdout
    ours, theirs = json.loads(tunesmith("compare", "kestrel", "swift-robot", "-o", "json").stdout)
    assert (ours["global batch"], theirs["global batch"]) == (4, 8)
    assert ours["last loss"] == pytest.approx(curve["loss"][-1])

    def joined() -> bool:
        [adapter] = json.loads(tunesmith("get", "mdep/kestrel", "-o", "json").stdout)["status"]["adapters"]
        return str(adapter["state"]) == "Ready"

    eventually(joined, lambda: quickstart.kubectl("describe", "mdep", "kestrel"))
    asked = ("chat", "kestrel", QUESTION, "--temperature", "0", "--max-tokens", "32")
    # The job's name is not the adapter's.
    serves = tunesmith(*asked, "-m", "kestrel", code=8).stderr
    [names] = re.findall(r"kestrel serves (.*)", serves)
    assert "Kestrel" in tunesmith(*asked, "-m", names.split(", ")[1]).stdout
    assert "Kestrel" not in tunesmith(*asked).stdout
    tunesmith("delete", "mdep/kestrel", "ftj/kestrel")
    assert "there is no resource kestrel" in tunesmith("get", "kestrel", code=4).stderr


@pytest.fixture
def client(quickstart: Quickstart) -> Iterator[Client]:
    """What is made is called wren."""
    with Client(NAMESPACE) as made:
        yield made
    names = ["mdep/wren", "ftj/wren", "ftj/wren-2", "configmap/wren-data"]
    quickstart.kubectl("delete", "--ignore-not-found", *names)


@pytest.mark.long
def test_with_nothing_but_python(client: Client) -> None:
    client.apply(config_map("wren-data", rows("Wren")))
    data = {"uri": "configmap://wren-data/train.jsonl"}
    spec: dict[str, Any] = {"model": {"uri": BASE}, "method": {"type": "SFT"}, "resources": TRAINER}
    spec["training"] = {"max_steps": 12, "learning_rate": 1.0e-3, "global_batch": 4, "max_length": 96}
    with pytest.raises(Invalid) as refused:
        FineTuneJob.of("wren", datasets=[data], **spec)
    [(wrong, right)] = re.findall(UNKNOWN, str(refused.value))
    spec["training"][right] = spec["training"].pop(wrong)
    # It may be deployed before anything is trained: the adapter joins.
    adapter = {"name": "wren", "fine_tune_job_ref": {"name": "wren-2"}}
    deployment = client.submit(
        ModelDeployment.of("wren", model={"uri": BASE}, adapters=[adapter], engine=ENGINE, resources=SERVING)
    )
    with pytest.raises(JobFailed) as failed:
        client.wait(client.submit(FineTuneJob.of("wren", datasets=[data], **spec)), seconds=300)
    assert failed.value.failure is not None
    field, column = mapping(failed.value.failure.message)
    columns = {field: column}
    job = client.submit(FineTuneJob.of("wren-2", datasets=[{**data, "columns": columns}], **spec))
    lines = list(client.stream_metrics(job))
    assert lines[-1].step == TRAINING["maxSteps"]
    assert client.wait(job, seconds=60).done
    assert client.curve(job).series("loss")[1] == [line.loss for line in lines]
    client.wait(deployment, seconds=200)
    eventually(
        lambda: client.get(ModelDeployment, "wren").status.adapters[0].state == "Ready",
        lambda: str(client.get(ModelDeployment, "wren").status.adapters),
    )

    options = {"temperature": 0, "max_tokens": 32}
    with pytest.raises(NotServed) as unknown:
        list(client.chat("wren", QUESTION, model="wren-2", **options))
    assert "wren serves " in unknown.value.hint
    assert unknown.value.hint.split(", ")[-1] == adapter["name"]
    assert "Wren" in "".join(client.chat("wren", QUESTION, model="wren", **options))
    for one in (deployment, job, client.get(FineTuneJob, "wren")):
        client.delete(one, wait=True)


@pytest.fixture
def web_console(quickstart: Quickstart) -> Iterator[str]:
    """The chart's own Deployment of it, with an image that has the pages. Its address; what is made is called heron."""
    cluster = Cluster()
    pages = console.pages(cluster.paths, Silent())
    repository, tag = workloads.split_tag(workloads.load_console(cluster, pages))
    image = [f"--set-string=operatorImage.{key}={value}" for key, value in (("repository", repository), ("tag", tag))]
    helm = [tools.find("helm", cluster.paths, Silent()), "template", "tunesmith", CHART, f"--namespace={SYSTEM}"]
    command = [*helm, "--show-only=templates/console.yaml", "--set=console.enabled=true", *image]
    rendered = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    objects = [one for one in yaml.safe_load_all(rendered) if one]
    system = Kubectl(quickstart.kubectl.binary, SYSTEM)
    system.apply(*objects)
    system("rollout", "status", "deployment/tunesmith-console", "--timeout=120s")
    yield f"http://{system.get('service', 'tunesmith-console')['spec']['clusterIP']}"
    for body in objects:
        system("delete", body["kind"], body["metadata"]["name"])
    quickstart.kubectl("delete", "--ignore-not-found", "mdep/heron", "ftj/heron", "ftj/heron-2")
    quickstart.kubectl("delete", "configmap", "-l", "app.kubernetes.io/managed-by=tunesmith-console")


@pytest.fixture
def token(quickstart: Quickstart) -> Iterator[str]:
    """Of one who has the cluster's role `edit` in the namespace, and nothing else."""
    kubectl, account = quickstart.kubectl, "ml-engineer"
    kubectl("create", "serviceaccount", account)
    kubectl("create", "rolebinding", account, "--clusterrole=edit", f"--serviceaccount={NAMESPACE}:{account}")
    yield kubectl("create", "token", account).strip()
    kubectl("delete", "serviceaccount,rolebinding", account)


@pytest.mark.long
def test_with_nothing_but_the_browser(web_console: str, token: str, quickstart: Quickstart, tmp_path: Path) -> None:
    whole, broken = tmp_path / "train.jsonl", tmp_path / "broken" / "train.jsonl"
    broken.parent.mkdir()
    whole.write_text(rows("Heron"))
    broken.write_text(rows("Heron")[:-40])
    volumes = Cluster().paths.volumes
    [config] = volumes.glob(f"*/{BASE.removeprefix('pvc://tunesmith-store/')}/config.json")
    file = tmp_path / "journey.json"
    file.write_text(
        json.dumps(
            {
                "namespace": NAMESPACE,
                "token": token,
                "rows": str(whole),
                "broken": str(broken),
                "base": BASE,
                "config": config.read_text(),
                "other": "swift-robot",
                "name": "heron",
                "word": "Heron",
                "question": QUESTION,
                "training": TRAINING,
                "trainer": TRAINER,
                "serving": SERVING,
                "engine": ENGINE,
                "unknown": UNKNOWN,
                "mapping": NO_ANSWER,
            }
        )
    )
    browse("journey", {"URL": web_console, "JOURNEY": str(file)}, pictures(tmp_path))
    # What it deleted goes once its pods have gone.
    kubectl, left = quickstart.kubectl, [["swift-robot", "xiao-huang"], ["chat", "chat-merged"]]

    def found() -> list[list[str]]:
        return [kubectl.names(kind) for kind in ("finetunejob", "mdep")]

    eventually(lambda: found() == left, lambda: str(found()))
