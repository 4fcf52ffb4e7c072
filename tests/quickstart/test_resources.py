"""What is read off a resource."""

from __future__ import annotations

from typing import Any

import pytest
from tunesmith_cluster.quickstart.resources import row


def resource(kind: str, status: dict[str, Any], generation: int = 1) -> dict[str, Any]:
    return {"kind": kind, "metadata": {"name": "x", "generation": generation}, "status": status}


def condition(type_: str, status: str, reason: str, message: str = "") -> dict[str, str]:
    return {"type": type_, "status": status, "reason": reason, "message": message}


def job(status: str, reason: str, message: str = "", **more: Any) -> dict[str, Any]:
    conditions = [condition("Succeeded", status, reason, message)]
    return resource("FineTuneJob", {"observedGeneration": 1, "conditions": conditions, **more})


def deployment(ready: tuple[str, ...], served: tuple[str, ...], **more: Any) -> dict[str, Any]:
    conditions = [condition("Ready", *ready), condition("AdaptersReady", *served)]
    return resource("ModelDeployment", {"observedGeneration": 1, "conditions": conditions, **more})


def test_a_new_resource_is_pending() -> None:
    assert row({"kind": "MergeJob", "metadata": {"name": "x", "generation": 1}}).status == "Pending"


def test_a_status_of_an_earlier_spec_does_not_count() -> None:
    stale = deployment(("True", "Ready"), ("True", "AdaptersReady"))
    stale["metadata"]["generation"] = 2
    assert not row(stale).done


def test_a_running_job_shows_its_progress() -> None:
    one = row(job("Unknown", "Running", progress={"step": 5, "totalSteps": 20, "loss": 2.34567, "eta": "40s"}))
    assert (one.status, one.step, one.loss, one.eta) == ("Running", "5/20", "2.346", "40s")
    assert not one.done
    assert one.line() == "FineTuneJob x: Running, step 5/20, loss 2.346, eta 40s"


def test_a_job_that_began_shows_no_eta_when_it_is_done() -> None:
    one = row(
        job(
            "True",
            "Completed",
            progress={"step": 20, "totalSteps": 20, "loss": 0.1, "eta": "0s"},
            startTime="2026-01-01T00:00:00Z",
            completionTime="2026-01-01T00:01:05Z",
        )
    )
    assert one.done
    assert one.eta == ""
    assert one.seconds == 65


@pytest.mark.parametrize(("status", "reason"), [("False", "DataError"), ("Unknown", "NameTaken")])
def test_a_failure_carries_the_operators_own_words(status: str, reason: str) -> None:
    assert row(job(status, reason, "row 3 has no answer")).failure == f"{reason}: row 3 has no answer"


def test_waiting_is_no_failure() -> None:
    one = row(job("Unknown", "WaitingForReference", "FineTuneJob a has not finished yet"))
    assert one.waits
    assert one.failure is None


@pytest.mark.parametrize(
    ("message", "held"),
    [
        (
            "pod x-0-abc, container trainer: ImagePullBackOff: Back-off pulling image (exit code 1)",
            "pod x-0-abc, container trainer: ImagePullBackOff",
        ),
        ("pod x-0-abc cannot be scheduled: 0/1 nodes are available", "pod x-0-abc cannot be scheduled"),
        ("no pod serves yet: vLLM is loading the model", None),
    ],
)
def test_what_holds_a_pod_up(message: str, held: str | None) -> None:
    assert row(job("Unknown", "Running", message)).held == held


def test_a_deployment_is_done_with_its_adapters() -> None:
    assert row(deployment(("True", "Ready"), ("True", "AdaptersReady"))).done
    loading = row(
        deployment(
            ("True", "Ready"),
            ("False", "WaitingForReference", "lora1: FineTuneJob a has not finished yet"),
            adapters=[{"name": "lora1"}],
            adaptersSummary="0/1",
        )
    )
    assert not loading.done
    assert loading.failure is None
    assert (loading.status, loading.step) == ("WaitingForReference", "0/1")


def test_a_failed_adapter_fails_the_quickstart() -> None:
    failed = row(deployment(("True", "Ready"), ("False", "AdapterFailed", "lora1: rank 16 is above 8")))
    assert failed.failure == "lora1: rank 16 is above 8"


@pytest.mark.parametrize(
    ("status", "word"),
    [
        ({}, "Pending"),
        ({"active": 1}, "Running"),
        ({"conditions": [condition("Complete", "True", "CompletionsReached")]}, "Completed"),
        ({"conditions": [condition("Failed", "True", "BackoffLimitExceeded", "too many")]}, "Failed"),
    ],
)
def test_a_plain_job(status: dict[str, Any], word: str) -> None:
    one = row({"kind": "Job", "metadata": {"name": "base", "generation": 1}, "status": status})
    assert one.status == word
    assert (one.failure is not None) == (word == "Failed")
