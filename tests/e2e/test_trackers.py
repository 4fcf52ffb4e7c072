"""A training in a pod reports to every tracker, and each is read in its own store: event files and W&B's and SwanLab's
records on the claim, and the database of a real MLflow server, whose password the pod has from a Secret.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from e2e.conftest import Quickstart
from integration.harness import eventually
from integration.test_pushing import ADDRESS
from tunesmith_cluster import Cluster
from tunesmith_cluster.environments import ROOT
from tunesmith_cluster.paths import Paths

pytestmark = pytest.mark.long

EXAMPLE = ROOT / "examples" / "trackers.yaml"
REQUIREMENTS = Path(__file__).with_name("mlflow.txt")
PASSWORD = secrets.token_hex(16)
# In the trainer's environment, which has the trackers' libraries.
READ = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from trainer.test_trackers import READERS
names = [name for name in READERS if name != "MLflow"]
print(json.dumps({name: READERS[name](Path(sys.argv[1], name.lower())) for name in names}))
"""


def program() -> Path:
    """MLflow's server, in an environment of its own in the cache: the trainer has its client only."""
    version = REQUIREMENTS.read_text().partition("==")[2].strip()
    folder = Paths.from_environment().cache / "envs" / f"mlflow-{version}"
    if not (folder / ".done").exists():
        venv.create(folder, clear=True, with_pip=True)
        pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", REQUIREMENTS], check=True)
        (folder / ".done").touch()
    return folder / "bin" / "mlflow"


@dataclass(frozen=True)
class Server:
    """An MLflow server that pods reach."""

    url: str
    database: Path

    def losses(self, experiment: str) -> dict[int, float]:
        """Of the only run of an experiment, which is finished."""
        with sqlite3.connect(self.database) as store:
            [(run, status, name)] = store.execute(
                "SELECT run_uuid, status, runs.name FROM runs JOIN experiments USING (experiment_id) "
                "WHERE experiments.name = ?",
                [experiment],
            ).fetchall()
            assert (status, name) == ("FINISHED", "tracked")
            rows = store.execute("SELECT step, value FROM metrics WHERE run_uuid = ? AND key = 'loss'", [run])
            return dict(rows.fetchall())


@pytest.fixture
def mlflow(quickstart: Quickstart, tmp_path: Path) -> Iterator[Server]:
    """Its password is in the Secret `mlflow`."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    settings = {
        "default_permission": "READ",
        "database_uri": f"sqlite:///{tmp_path}/auth.db",
        "admin_username": "trainer",
        "admin_password": PASSWORD,
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
    }
    lines = ["[mlflow]", *(f"{name} = {value}" for name, value in settings.items())]
    (tmp_path / "auth.ini").write_text("\n".join(lines))
    database, node = tmp_path / "runs.db", quickstart.kubectl("get", "node", "-o", f"jsonpath={ADDRESS}")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(program(), "server", "--app-name=basic-auth", "--workers=1", "--host=0.0.0.0", f"--port={port}"),
                *(f"--backend-store-uri=sqlite:///{database}", f"--artifacts-destination={tmp_path}/artifacts"),
                "--allowed-hosts=*",
            ],
            env=os.environ
            | {"MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": PASSWORD},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://{node}:{port}"

    def answers(path: str) -> int:
        try:
            with urllib.request.urlopen(f"{url}{path}", timeout=5) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0

    try:
        eventually(lambda: answers("/health") == 200, lambda: (tmp_path / "log").read_text()[-3000:], 120)
        assert answers("/api/2.0/mlflow/experiments/get?experiment_id=0") == 401, "it lets everybody in"
        literals = ["--from-literal=username=trainer", f"--from-literal=password={PASSWORD}"]
        quickstart.kubectl("create", "secret", "generic", "mlflow", *literals)
        yield Server(url, database)
        quickstart.kubectl("delete", "secret", "mlflow")
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def test_a_pod_reports_to_every_tracker_what_logging_jsonl_says(
    quickstart: Quickstart, removed_after: Callable[..., None], mlflow: Server
) -> None:
    job = yaml.safe_load(EXAMPLE.read_text())
    training = job["spec"]["training"]
    training |= {"maxSteps": 4, "loggingSteps": 1, "globalBatchSize": 2, "maxLength": 64}
    [told] = [one for one in training["reportTo"] if one["type"] == "MLflow"]
    told |= {"url": mlflow.url, "secretRef": {"name": "mlflow"}}
    job["spec"]["resources"] = {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"memory": "4Gi"}}
    removed_after(job)
    quickstart.kubectl.wait("finetunejob", "tracked", "Completed", seconds=400)
    log = quickstart.kubectl("logs", "job/tracked-train-1")
    assert "gets no more reports" not in log
    runs = Cluster().paths.volumes.glob("*/jobs/default/tracked-*")
    run = max(runs, key=lambda path: path.stat().st_mtime)  # earlier ones stay in the store
    lines = [json.loads(line) for line in (run / "logging.jsonl").read_text().splitlines()]
    wanted = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert list(wanted) == [1, 2, 3, 4]
    assert mlflow.losses("assistants") == pytest.approx(wanted, rel=1e-6)
    read = subprocess.run(
        [
            *(sys.executable, "-m", "tunesmith_cluster.environments", "run", "trainer"),
            *("-c", READ, run / "trackers", ROOT / "tests"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert read.returncode == 0, read.stderr
    found = json.loads(read.stdout.splitlines()[-1])
    assert found.keys() == {"TensorBoard", "WandB", "SwanLab"}
    for name, losses in found.items():
        assert {int(step): loss for step, loss in losses.items()} == pytest.approx(wanted, rel=1e-6), name
    assert not (run / "trackers" / "mlflow" / "meta.yaml").exists(), "it went to the server"
