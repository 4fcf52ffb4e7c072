"""Each method's example trains: the very file of examples/methods, on a tiny model and a few rows."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
from matrix.test_cells import METHODS
from trainer.support import artifact_path, read_log
from tunesmith.api.methods import MEMBERS
from tunesmith_trainer.local.planning import plan_for, read
from tunesmith_trainer.train import train

pytestmark = pytest.mark.trainer

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples" / "methods").glob("*.yaml"))
DATA = ROOT / "examples" / "quickstart" / "03-data.yaml"


def test_each_method_has_an_example() -> None:
    assert {read(path).resource["spec"]["method"]["type"] for path in EXAMPLES} == MEMBERS.keys()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_of_a_method_trains(path: Path, tiny: Path, tmp_path: Path) -> None:
    store = tmp_path / "tunesmith-store"
    shutil.copytree(tiny, store / "base" / "smollm2-135m-instruct")
    job = read([path, DATA])
    spec = job.resource["spec"]
    method = spec["method"]["type"]
    spec["method"].get("embedding", {}).pop("dimensions", None)  # more than the tiny model has
    if "gkd" in spec["method"]:  # its teacher is what a MergeJob made
        spec["method"]["gkd"]["teacher"] = {"uri": "pvc://tunesmith-store/base/smollm2-135m-instruct"}
    if "maxSteps" in spec["training"]:
        spec["training"]["maxSteps"] = 2
    rows, _ = METHODS[method]
    (store / "data").mkdir()
    (store / "data" / f"{path.stem}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    plan, _ = plan_for(job, tmp_path)
    ending = train(plan)
    log = read_log(plan)
    assert log
    assert all(math.isfinite(line["loss"]) for line in log)
    weights = "model.safetensors" if plan.tuner.type == "Full" else "adapter_model.safetensors"
    assert (artifact_path(plan, ending) / weights).stat().st_size > 0
