"""Experiment trackers, run for real without their servers: what they wrote is what logging.jsonl says."""

from __future__ import annotations

import base64
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from trainer.support import read_log
from tunesmith.training.plan import TrackerPlan, TrainPlan
from tunesmith_trainer.errors import ConfigError
from tunesmith_trainer.local.checking import check
from tunesmith_trainer.local.planning import plan_for, read
from tunesmith_trainer.trackers import KINDS, variables
from tunesmith_trainer.train import train

pytestmark = pytest.mark.trainer

Make = Callable[..., TrainPlan]
Losses = dict[int, float]

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Trackers are told by the environment, which is put back."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def only(folder: Path, pattern: str) -> Path:
    [found] = folder.rglob(pattern)
    return found


def of_tensorboard(folder: Path) -> Losses:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("train/loss")}


def of_wandb(folder: Path) -> Losses:
    """By SwanLab's reader of such files: W&B has none in public."""
    from swanlab.converter.wb.wbdatastore import WBDataStoreReader
    from wandb.proto import wandb_internal_pb2

    found = {}
    with WBDataStoreReader() as reader:
        reader.open(only(folder, "run-*.wandb"))
        while (record := reader.scan()) is not None:
            message = wandb_internal_pb2.Record()
            message.ParseFromString(record)
            row = {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in message.history.item}
            if "train/loss" in row:
                found[row["train/global_step"]] = row["train/loss"]
    return found


def of_swanlab(folder: Path) -> Losses:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    reader = DataStoreReader()
    reader.open(only(folder, "run-*.swanlab"))
    found = {}
    for record in reader:
        message = Record()
        message.ParseFromString(record)
        if message.HasField("scalar") and message.scalar.key == "train/loss":
            found[message.scalar.step] = message.scalar.value.number
    reader.close()
    return found


def of_mlflow(folder: Path) -> Losses:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(str(folder))
    experiment = client.get_experiment_by_name("assistants")
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "tracked")
    return {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "loss")}


READERS: dict[str, Callable[[Path], Losses]] = {
    "TensorBoard": of_tensorboard, "WandB": of_wandb, "SwanLab": of_swanlab, "MLflow": of_mlflow,
}  # fmt: skip


def test_the_example_reports_to_all_trackers_what_logging_jsonl_says(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "tunesmith-store" / "base" / "smollm2-135m-instruct")
    job = read([ROOT / "examples" / "trackers.yaml", ROOT / "examples" / "quickstart" / "03-data.yaml"])
    job.resource["spec"]["training"] |= {"maxSteps": 4, "loggingSteps": 1, "globalBatchSize": 2}
    plan, _ = plan_for(job, tmp_path)
    assert {tracker.type for tracker in plan.training.report_to} == READERS.keys() == KINDS.keys()
    train(plan)
    wanted = {line["step"]: line["loss"] for line in read_log(plan)}
    assert list(wanted) == [1, 2, 3, 4]
    for name, losses in READERS.items():
        found = losses(Path(plan.output.run, "trackers", name.lower()))
        assert found == pytest.approx(wanted, rel=1e-6), name


@pytest.mark.parametrize(
    ("tracker", "told"),
    [
        ({"type": "TensorBoard", "project": "p"}, "TensorBoard's files go to the run's folder"),
        ({"type": "WandB", "url": "https://wandb.corp"}, "need a secretRef with an apiKey"),
        ({"type": "MLflow", "secretRef": {"name": "s"}}, "MLflow needs the url of the server"),
        ({"type": "MLflow", "url": "https://me:hush@mlflow.corp"}, "reportTo"),
        ({"type": "Comet"}, "TensorBoard"),
    ],
)
def test_what_a_tracker_cannot_use_is_refused_at_admission(tracker: dict[str, Any], told: str) -> None:
    job = read([ROOT / "examples" / "trackers.yaml", ROOT / "examples" / "quickstart" / "03-data.yaml"])
    check(job.resource)
    job.resource["spec"]["training"]["reportTo"] = [tracker]
    with pytest.raises(ConfigError, match=told):
        check(job.resource)


class Server:
    """A server that refuses all, and remembers who asked."""

    def __init__(self) -> None:
        self.authorizations: set[str | None] = set()
        authorizations = self.authorizations

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                authorizations.add(self.headers["Authorization"])
                self.send_response(403)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_POST(self) -> None:
                self.do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


def test_a_tracker_that_refuses_is_said_and_costs_no_training(
    make_plan: Make, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "username").write_text("me\n")
    (secret / "password").write_text("hush\n")
    plan = make_plan(max_steps=2, report_to=[{"type": "MLflow", "url": server.url, "secret": str(secret)}])
    assert train(plan).step == 2
    told = capsys.readouterr().out
    assert "MLflow gets no more reports: " in told
    assert "hush" not in told
    assert server.authorizations == {"Basic " + base64.b64encode(b"me:hush").decode()}


def test_only_rank_0_reports(make_plan: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith_trainer.trackers import Trackers

    plan = make_plan(report_to=[{"type": "TensorBoard"}])
    monkeypatch.setenv("RANK", "1")
    assert not Trackers(plan).callbacks
    monkeypatch.setenv("RANK", "0")
    assert list(Trackers(plan).callbacks) == ["TensorBoard"]


def test_a_secret_without_the_key_ends_the_job_before_a_model_is_loaded(make_plan: Make, tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()
    plan = make_plan(report_to=[{"type": "WandB", "secret": str(tmp_path / "wandb")}])
    with pytest.raises(ConfigError, match=r"spec.training.reportTo: Secret wandb has none of the keys apiKey"):
        train(plan)


def test_without_a_cluster_the_credentials_are_those_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = TrackerPlan(type="SwanLab", url="https://swanlab.corp", secret="/mnt/secrets/none")
    monkeypatch.delenv("SWANLAB_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="set SWANLAB_API_KEY"):
        variables(tracker, tmp_path)
    monkeypatch.setenv("SWANLAB_API_KEY", "key")
    found = variables(tracker, tmp_path)
    assert (found["SWANLAB_API_KEY"], found["SWANLAB_MODE"]) == ("key", "online")
    assert found["SWANLAB_API_HOST"] == "https://swanlab.corp"
