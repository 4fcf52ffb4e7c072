"""What a user writes in Python or YAML is looked at before it is sent."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import tunesmith.client
from tunesmith import FineTuneJob, Invalid, MergeJob, ModelDeployment
from tunesmith.client.resources import read

SPEC: dict[str, Any] = {
    "model": {"uri": "hf://org/base"},
    "datasets": [{"uri": "configmap://data/train.jsonl", "variables": {"learning_rate": "1"}}],
    "method": {"type": "SFT"},
}


def test_fields_may_be_spelled_as_in_python() -> None:
    job = FineTuneJob.of("x", **SPEC, training={"max_steps": 3}, active_deadline_seconds=60)
    assert job.manifest()["spec"] == {**SPEC, "training": {"maxSteps": 3}, "activeDeadlineSeconds": 60}
    assert job.spec.training.max_steps == 3


def test_every_mistake_is_said_at_once_with_its_field() -> None:
    with pytest.raises(Invalid) as caught:
        FineTuneJob.of("x", **{**SPEC, "method": {"type": "SFTT"}}, trainning={"maxSteps": 3}, tuner={"ranc": 4})
    message = str(caught.value)
    assert "spec.trainning: unknown field; did you mean training?" in message
    assert "spec.tuner.ranc: unknown field; did you mean rank?" in message
    assert "spec.method.type: input should be 'PreTraining'" in message
    assert "found 'SFTT'" in message


def test_what_is_passed_on_to_pods_is_not_looked_into() -> None:
    template = {"affinity": {"nodeAffinity": {"anything": [1]}}}
    assert FineTuneJob.of("x", **SPEC, podTemplate=template).manifest()["spec"]["podTemplate"] == template


def test_another_kind_and_a_nameless_one_are_refused() -> None:
    with pytest.raises(Invalid, match="v1 ConfigMap is no kind of tunesmith"):
        read({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}})
    with pytest.raises(Invalid, match="a MergeJob has no name"):
        read({"apiVersion": "tunesmith.io/v1alpha1", "kind": "MergeJob", "metadata": {}, "spec": {}})


def test_what_is_submitted_has_no_status_and_nothing_of_the_servers() -> None:
    meta = {"name": "x", "namespace": "ns", "uid": "u", "resourceVersion": "7", "labels": {"team": "a"}}
    live = MergeJob.model_validate(
        {
            "metadata": {**meta, "managedFields": []},
            "spec": {"model": {"uri": "hf://a/b"}, "adapters": [{"uri": "hf://a/c"}]},
            "status": {"conditions": []},
        }
    )
    assert live.manifest() == {
        "apiVersion": "tunesmith.io/v1alpha1",
        "kind": "MergeJob",
        "metadata": {"name": "x", "namespace": "ns", "labels": {"team": "a"}},
        "spec": {"model": {"uri": "hf://a/b"}, "adapters": [{"uri": "hf://a/c"}]},
    }


def test_a_condition_of_an_older_spec_says_nothing_of_this_one() -> None:
    condition = {
        "type": "Ready", "status": "True", "reason": "Ready", "message": "all pods serve",
        "lastTransitionTime": "2026-01-02T03:04:05Z", "observedGeneration": 1,
    }  # fmt: skip
    body = {"metadata": {"name": "x", "generation": 2}, "spec": {"model": {"uri": "hf://a/b"}}}
    changed = ModelDeployment.model_validate({**body, "status": {"conditions": [condition]}})
    assert not changed.done
    assert changed.reason == "Pending"
    seen = ModelDeployment.model_validate({**body, "status": {"conditions": [{**condition, "observedGeneration": 2}]}})
    assert seen.done


def test_the_packages_names_are_the_clients() -> None:
    assert set(tunesmith.client.__all__) == tunesmith.CLIENT


def test_the_operator_and_the_agent_load_nothing_of_the_client() -> None:
    script = (
        "import sys, tunesmith.__main__, tunesmith.agent.__main__\n"
        "print([name for name in sys.modules if name.startswith(('tunesmith.client', 'tunesmith.cli', 'typer'))])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
