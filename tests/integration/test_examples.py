"""Every resource in README, docs and examples is one that the API server takes, and whose plan can be made."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from integration.harness import ROOT, Kubectl
from tunesmith.api.finetunejob import FineTuneJob
from tunesmith.api.kinds import MODELS
from tunesmith.training.plan import Job
from tunesmith.training.planning import train_plan

TEXTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]


def resources() -> list[tuple[str, dict[str, Any]]]:
    documents: list[tuple[Path, str]] = [(path, path.read_text()) for path in sorted(ROOT.glob("examples/**/*.yaml"))]
    for path in TEXTS:
        documents += [(path, block) for block in re.findall(r"```yaml\n(.*?)```", path.read_text(), re.DOTALL)]
    found = [(path, body) for path, text in documents for body in yaml.safe_load_all(text) if body]
    found = [
        (path, body) for path, body in found if body.get("kind") not in {None, "PersistentVolumeClaim"}
    ]  # the fixture's
    # What names its namespace is Argo CD's or Flux's: tests/gitops.
    found = [(path, body) for path, body in found if "namespace" not in body["metadata"]]
    return [(f"{path.relative_to(ROOT)}:{body['kind']}/{body['metadata']['name']}", body) for path, body in found]


RESOURCES = resources()


@pytest.mark.parametrize("body", [body for _, body in RESOURCES], ids=[name for name, _ in RESOURCES])
def test_an_example_is_taken_as_it_is_written(asked: Kubectl, body: dict[str, Any]) -> None:
    asked("apply", "--dry-run=server", "-f", "-", stdin=body)
    if body["kind"] == "FineTuneJob":
        spec = FineTuneJob.model_validate(body).spec
        train_plan(
            Job(namespace="ns", name="x", uid="0" * 8),
            spec,
            defaultdict(lambda: "pvc://tunesmith-store/other"),
            "pvc://tunesmith-store",
        )


def test_there_are_examples() -> None:
    assert {body["kind"] for _, body in RESOURCES} >= MODELS.keys()
