"""A FineTuneJob's file runs on this machine as it does in a cluster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tunesmith_trainer
import yaml
from trainer.support import ROWS
from tunesmith_trainer.errors import ConfigError, DataError
from tunesmith_trainer.local.planning import plan_for, read

pytestmark = pytest.mark.trainer

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAM = [sys.executable, "-m", "tunesmith_trainer", "run"]


def job(**spec: Any) -> dict[str, Any]:
    """A resource over files beside it."""
    return {
        "apiVersion": "tunesmith.io/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "here"},
        "spec": {"model": {"uri": "tiny"}, "datasets": [{"uri": "rows.jsonl"}], "method": {"type": "SFT"}} | spec,
    }  # fmt: skip


@pytest.fixture
def folder(tiny: Path, tmp_path: Path) -> Path:
    """A folder with a model and rows."""
    (tmp_path / "tiny").symlink_to(tiny)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def write(folder: Path, resource: dict[str, Any]) -> Path:
    """A job's file."""
    path = folder / "finetune.yaml"
    path.write_text(yaml.safe_dump(resource))
    return path


@pytest.mark.long
def test_the_quickstarts_job_runs_with_its_data_from_files(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "tunesmith-store" / "base" / "smollm2-135m-instruct")
    files = [str(EXAMPLES / "quickstart" / name) for name in ("03-data.yaml", "04-swift-robot.yaml")]
    done = subprocess.run([*PROGRAM, *files], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr + done.stdout
    [artifact] = [Path(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("artefact: ")]
    assert artifact.parent == tmp_path / "tunesmith-store" / "adapters"
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert manifest["base"]["uri"] == "pvc://tunesmith-store/base/smollm2-135m-instruct"
    assert [one["uri"] for one in manifest["data"]] == [
        "configmap://self-cognition/self-cognition.jsonl", "configmap://self-cognition/general.jsonl",
    ]  # fmt: skip
    assert "GiB per process" in done.stdout  # the estimate
    assert "step 20/20" in done.stdout


@pytest.mark.long
def test_ctrl_c_makes_a_checkpoint_from_which_the_same_run_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"maxSteps": 80, "loggingSteps": 1, "globalBatchSize": 4, "microBatchSize": 2, "maxLength": 64}
    path = write(folder, job(training=training, processesPerNode=2, tuner={"type": "LoRA", "dropout": 0}))
    process = subprocess.Popen(
        [*PROGRAM, str(path)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Of a shell's background job, as tests may be, it would be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    log = "tunesmith-store/jobs/local/here-*/logging.jsonl"
    end = time.monotonic() + 200
    while sum(len(found.read_text().splitlines()) for found in folder.glob(log)) < 3:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=150)
    assert process.returncode == 143, output
    assert "it goes on from there" in output
    [checkpoint] = [found.name for found in folder.glob("tunesmith-store/jobs/local/here-*/checkpoint-*")]
    stopped = int(checkpoint.removeprefix("checkpoint-"))
    assert 3 <= stopped < 80
    monkeypatch.chdir(folder)
    made = tunesmith_trainer.run(path)
    assert [line["step"] for line in made.log] == list(range(1, 81))
    assert f"resuming from {checkpoint}" in (made.run / "output.log").read_text()
    assert (made.path / "adapter_model.safetensors").is_file()
    assert made.artifact.kind == "adapters"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"metod": {}}, "spec.metod: there is no such field; known are .*method"),
        ({"training": {"learningRate": -1}}, r"spec\.training\.learningRate: Input should be greater than 0"),
        (
            {"training": {"globalBatchSize": 6, "microBatchSize": 4}},
            "spec.training: globalBatchSize must be a multiple",
        ),
        ({"tuner": {"type": "Full", "rank": 4}}, "spec.tuner: "),
        ({"method": {"type": "KTO"}}, r"spec\.training\.microBatchSize: .*use 2 or more"),
        ({"nodes": 2}, r"spec\.nodes: 2, but this is one machine"),
        ({"memory": {"perDevice": "1Mi"}}, "spec.memory.check: Warn"),
        ({"model": {"fineTuneJobRef": {"name": "other"}}}, "fineTuneJobRef: other: no run of it has finished"),
    ],
)
def test_what_the_cluster_would_refuse_is_refused(folder: Path, spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_for(read(write(folder, job(**spec))), folder)


def test_a_missing_file_is_named_by_its_field(folder: Path) -> None:
    with pytest.raises(DataError, match=r"spec\.datasets: file:///.*/gone.jsonl: there is no file"):
        plan_for(read(write(folder, job(datasets=[{"uri": "gone.jsonl"}]))), folder)


def test_what_is_learned_makes_the_run_and_not_how_it_is_spread(folder: Path) -> None:
    plain, spread, other = (
        plan_for(read(write(folder, job(**spec))), folder)[0].output.run
        for spec in ({}, {"processesPerNode": 2}, {"training": {"seed": 7}})
    )
    assert plain == spread
    assert other != plain


def test_keys_in_the_environment_reach_the_store_that_data_lie_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}

    def fetch(uri: str, to: Path, secret: Path, kind: str) -> Path:
        seen.update({path.name: path.read_text() for path in secret.iterdir()}, kind=kind)
        to.mkdir(parents=True)
        shutil.copy(folder / "rows.jsonl", to)
        return to

    monkeypatch.setattr("tunesmith_trainer.local.addresses.fetch", fetch)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.delenv("AWS_REGION", raising=False)
    plan, _ = plan_for(read(write(folder, job(datasets=[{"uri": "s3://bucket/rows"}]))), folder)
    assert seen == {"accessKeyId": "me", "kind": "dataset"}
    assert plan.datasets[0].uri == "s3://bucket/rows"
    assert os.listdir(plan.datasets[0].path) == ["rows.jsonl"]
