"""InferenceJobs on the real kubelet: the example as it stands, and one that is followed and pushed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from statistics import fmean
from typing import Any

import pytest
import yaml
from e2e.conftest import Quickstart
from e2e.test_quickstart import BASE
from integration.harness import custom
from integration.test_pushing import reachable_bucket
from tunesmith_cluster import Cluster
from tunesmith_cluster.environments import ROOT

EXAMPLE = ROOT / "examples" / "inference" / "xiao-huang-answers.yaml"


def test_an_adapters_answers_lie_in_the_store_with_their_metrics_in_the_status(
    quickstart: Quickstart, removed_after: Callable[..., None]
) -> None:
    config, job = yaml.safe_load_all(EXAMPLE.read_text())
    removed_after(config, job)
    done = quickstart.kubectl.wait("inferencejob", "xiao-huang-answers", "Completed", seconds=400)["status"]
    name = done["artifact"]["digest"].removeprefix("sha256:")
    assert done["artifact"]["uri"] == f"pvc://tunesmith-store/results/{name}"
    [folder] = Cluster().paths.volumes.glob(f"*/results/{name}")
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    rows = [json.loads(row) for row in config["data"]["test.jsonl"].splitlines()]
    assert [(line["prompt"][-1]["content"], line["expected"]) for line in lines] == [
        (row["query"], row["response"]) for row in rows
    ]
    assert "Xiao Huang" in lines[0]["answer"]
    assert "Paris" in lines[3]["answer"]
    # The same answer as the served model's.
    assert quickstart.says("chat", "lora2", "Who are you?").strip() == lines[0]["answer"].strip()
    metrics = done["metrics"]
    assert metrics["accuracy"] == pytest.approx(
        fmean(row["response"] == x["answer"].strip() for row, x in zip(rows, lines, strict=True))
    )
    assert metrics["rougeL"] == pytest.approx(fmean(line["rougeL"] for line in lines), abs=1e-6)
    assert json.loads((folder / "metrics.json").read_text()) == {"rows": 4, **metrics}
    assert (done["progress"]["rows"], done["progress"]["percent"]) == (4, 100)
    assert quickstart.kubectl("get", "ij", "xiao-huang-answers", "--no-headers").split()[1] == "Completed"
    manifest = json.loads((folder / "manifest.json").read_text())
    tuned = quickstart.kubectl.get("finetunejob", "xiao-huang")["status"]["artifact"]["digest"]
    assert manifest["adapters"] == [
        {"uri": f"pvc://tunesmith-store/adapters/{tuned.removeprefix('sha256:')}", "digest": tuned}
    ]


@pytest.fixture
def bucket(quickstart: Quickstart) -> Iterator[Any]:
    with reachable_bucket(quickstart.kubectl) as found:
        yield found
    quickstart.kubectl("delete", "secret", "bucket")


@pytest.mark.long
def test_answers_are_watched_and_their_log_is_read_while_they_are_made_and_then_they_are_pushed(
    quickstart: Quickstart, removed_after: Callable[..., None], bucket: tuple[str, Any]
) -> None:
    name, client = bucket
    rows = 30
    spec = {
        "model": {"uri": BASE},
        "datasets": [{"uri": "configmap://self-cognition/general.jsonl"}],
        "maxRows": rows,
        "batchSize": 1,
        "generation": {"maxTokens": 48},
        "output": {"push": [{"uri": f"s3://{name}/answers", "secretRef": {"name": "bucket"}}]},
        "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}},
    }
    removed_after(custom("InferenceJob", "followed", spec))
    tunesmith = [sys.executable, "-m", "tunesmith.cli"]
    watching, reading = [*tunesmith, "watch", "ij/followed", "--timeout", "600"], [*tunesmith, "logs", "followed", "-f"]
    with subprocess.Popen(watching, stdout=subprocess.PIPE, text=True) as watch:
        quickstart.kubectl.wait("inferencejob", "followed", "Running", seconds=200)
        with subprocess.Popen(reading, stdout=subprocess.PIPE, text=True) as log:
            assert log.stdout
            line = next(line for line in log.stdout if re.search(r"row \d+/30  \S+ rows/s  eta ", line))
            assert quickstart.kubectl.condition("inferencejob", "followed")["status"] == "Unknown", line
            rest = log.stdout.read()
        assert "row 30/30" in rest
        assert "artefact pvc://tunesmith-store/results/" in rest
        watched = watch.communicate(timeout=60)[0]
    assert (log.returncode, watch.returncode) == (0, 0)
    seen = [int(found) for found in re.findall(r"InferenceJob followed: Running  (\d+)/30 \(\d+%\)", watched)]
    assert [one for one in seen if 0 < one < rows], watched
    assert seen == sorted(seen)
    assert "InferenceJob followed: Completed  30/30 (100%)" in watched
    status = quickstart.kubectl.wait("inferencejob", "followed", "Pushed", "Pushed")["status"]
    assert status["pushed"][0]["digest"] == status["artifact"]["digest"]
    listed = client.list_objects_v2(Bucket=name)["Contents"]
    assert {one["Key"] for one in listed} == {
        f"answers/{file}" for file in ("results.jsonl", "metrics.json", "README.md", "manifest.json")
    }
    lines = client.get_object(Bucket=name, Key="answers/results.jsonl")["Body"].read().splitlines()
    assert len(lines) == rows
