"""The examples of methods are jobs that can be planned, and there is one for each method that the docs speak of."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from tunesmith.api.finetunejob import FineTuneJob, FineTuneJobSpec
from tunesmith.training.matrix import PlanError
from tunesmith.training.plan import Job
from tunesmith.training.planning import train_plan

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "examples" / "methods").glob("*.yaml"))
JOB = Job(namespace="default", name="example", uid="0123456789")
METHODS = {"DPO", "KTO", "CPO", "SimPO", "ORPO", "RewardModel", "Classification", "Embedding", "Reranker"}


def spec_of(path: Path) -> FineTuneJobSpec:
    """The job's spec; other objects of the file are passed over."""
    found = [one for one in yaml.safe_load_all(path.read_text()) if one["kind"] == "FineTuneJob"]
    assert [one["apiVersion"] for one in found] == ["tunesmith.io/v1alpha1"]
    return FineTuneJob.model_validate({"spec": found[0]["spec"]}).spec


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_can_be_planned(path: Path) -> None:
    spec = spec_of(path)
    finished: dict[tuple[str, str], str] = defaultdict(lambda: "pvc://tunesmith-store/models/other")
    plan = train_plan(JOB, spec, finished, "pvc://tunesmith-store")
    assert plan.method.type == spec.method.type
    assert plan.method.options


def test_each_method_has_an_example_and_a_line_in_the_docs() -> None:
    assert {spec_of(path).method.type for path in EXAMPLES} >= METHODS
    docs = (ROOT / "docs" / "methods.md").read_text()
    assert not [method for method in METHODS if f"## {method}" not in docs and f"| {method} |" not in docs]


def test_kto_needs_two_rows_in_a_micro_batch() -> None:
    spec = spec_of(ROOT / "examples" / "methods" / "kto.yaml")
    alone = spec.model_copy(update={"training": spec.training.model_copy(update={"micro_batch_size": 1})})
    with pytest.raises(PlanError, match=r"spec\.training\.microBatchSize: KTO estimates .*: use 2 or more"):
        train_plan(JOB, alone, {}, "pvc://tunesmith-store")
