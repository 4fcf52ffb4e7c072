"""What is decided for FineTuneJobs and MergeJobs, by table."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from tunesmith.decide.job import decide
from tunesmith.decide.world import Decision, World
from tunesmith.training.report import Report
from unit.operator.builders import (
    NOW,
    SETTINGS,
    STAMP,
    attempt,
    begun,
    children,
    decided,
    finished,
    job,
    merge,
    mine,
    pod,
    terminated,
    train,
    world,
)

DONE = {
    "reason": "Completed",
    "artifact": {"kind": "adapters", "uri": "pvc://store/adapters/abc", "digest": "sha256:abc"},
    "logitError": 0.001,
}


def succeeded(decision: Decision) -> tuple[str, str, str]:
    condition = next(c for c in decision.status.body()["conditions"] if c["type"] == "Succeeded")
    return condition["status"], condition["reason"], condition["message"]


def kinds(objects: tuple[dict[str, Any], ...]) -> list[tuple[str, str]]:
    return [(o["kind"], o["metadata"]["name"]) for o in objects]


@pytest.mark.parametrize(
    ("observed", "status", "reason", "message"),
    [
        (
            world(train(model={"fineTuneJobRef": {"name": "a"}}), references={("FineTuneJob", "a"): None}),
            "Unknown",
            "WaitingForReference",
            "FineTuneJob a does not exist yet",
        ),
        (
            world(
                merge(), references={("FineTuneJob", "tuned"): finished("FineTuneJob", "tuned", succeeded="Unknown")}
            ),
            "Unknown",
            "WaitingForReference",
            "has not finished yet",
        ),
        (
            world(merge(), references={("FineTuneJob", "tuned"): finished("FineTuneJob", "tuned", succeeded="False")}),
            "Unknown",
            "WaitingForReference",
            "FineTuneJob tuned failed (DataError): delete it and apply it again",
        ),
        (
            world(merge(), references={("FineTuneJob", "tuned"): finished("FineTuneJob", "tuned", "models")}),
            "False",
            "ConfigError",
            "spec.adapters[0]: FineTuneJob tuned made a whole model, but an adapter is needed here",
        ),
        (
            world(
                train(model={"fineTuneJobRef": {"name": "a"}}),
                references={("FineTuneJob", "a"): finished("FineTuneJob", "a")},
            ),
            "False",
            "ConfigError",
            "spec.model: FineTuneJob a made an adapter, but a whole model is needed here: merge it",
        ),
        (
            world(train(nodes=3)),
            "False",
            "ConfigError",
            "spec.training.globalBatchSize: 16 rows cannot be divided among 3 node(s) x 1 process(es) "
            "x microBatchSize 1: use 15 or 18",
        ),
        (
            world(train(), missing=("spec.model: PersistentVolumeClaim store does not exist",)),
            "Unknown",
            "WaitingForInput",
            "PersistentVolumeClaim store does not exist",
        ),
        (
            world(
                train(),
                children={("Job", "x-train-1"): {"kind": "Job", "metadata": {"name": "x-train-1", "labels": {}}}},
            ),
            "Unknown",
            "NameTaken",
            "Job x-train-1 exists and does not belong to this FineTuneJob",
        ),
        (
            world(train(), children=children(job()), pods=(pod(phase="Pending"),)),
            "Unknown",
            "Starting",
            "0 of 1 pods run",
        ),
        (world(train(), children=children(job()), pods=(pod(),)), "Unknown", "Running", "the pod runs"),
        (
            world(
                train(), children=children(job()), pods=(pod(),), report=Report(waiting="pvc://store/base is not there")
            ),
            "Unknown",
            "WaitingForInput",
            "pvc://store/base is not there",
        ),
    ],
)
def test_each_state_has_one_condition(observed: World, status: str, reason: str, message: str) -> None:
    found = succeeded(decided(observed))
    assert found[:2] == (status, reason)
    assert message in found[2]


def test_nothing_is_made_while_something_is_missing() -> None:
    decision = decided(world(train(), missing=("x",)))
    assert not decision.create
    assert not decision.apply
    assert decision.again is not None


def test_a_single_process_gets_no_service_and_a_group_does() -> None:
    assert kinds(decided(world(train())).create) == [("ConfigMap", "x-train-1"), ("Job", "x-train-1")]
    assert kinds(decided(world(train(nodes=2))).create) == [
        ("ConfigMap", "x-train-1"),
        ("Service", "x-train-1"),
        ("Job", "x-train-1"),
    ]


@pytest.mark.parametrize("outcome", ["True", "False"])
def test_a_terminal_job_never_runs_again(outcome: str) -> None:
    over = finished("FineTuneJob", "x", succeeded=outcome)
    assert decide(world({**train(), "status": over["status"]}), SETTINGS) is None


def test_a_job_that_is_being_deleted_is_left_alone() -> None:
    resource = train()
    resource["metadata"]["deletionTimestamp"] = STAMP
    assert decide(world(resource), SETTINGS) is None


def test_a_run_keeps_the_plan_that_it_began_with() -> None:
    begun = decided(world(train()))
    plan = next(o for o in begun.create if o["kind"] == "ConfigMap")
    observed = world(
        train(), children=children(mine("ConfigMap", "x-train-1", data=plan["data"]), job()), pods=(pod(),)
    )
    later = decide(observed, SETTINGS.model_copy(update={"default_store": "pvc://elsewhere"}))
    assert later is not None
    volumes = next(o for o in later.create if o["kind"] == "Job")["spec"]["template"]["spec"]["volumes"]
    assert {"name": "claim-tunesmith-store", "persistentVolumeClaim": {"claimName": "tunesmith-store"}} in volumes
    assert "elsewhere" not in json.dumps(later.create)


def test_a_merge_reports_the_error_of_its_logits() -> None:
    observed = world(
        merge(begun()),
        children=children(job(ended="Complete", kind="merge")),
        pods=(pod(**terminated(0, json.dumps(DONE))),),
    )
    assert decided(observed).status.body()["logitError"] == 0.001


def test_a_merge_that_quantises_reports_the_error_of_that_beside_its_own() -> None:
    observed = world(
        merge(begun()),
        children=children(job(ended="Complete", kind="merge")),
        pods=(pod(**terminated(0, json.dumps(DONE | {"quantizationError": 0.123456}))),),
    )
    status = decided(observed).status.body()
    assert (status["logitError"], status["quantizationError"]) == (0.001, 0.123)


def test_progress_is_written_at_most_every_ten_seconds() -> None:
    report = Report(step=50, total_steps=200, loss=1.23456, eta_seconds=3700)
    running = {"children": children(job()), "pods": (pod(),), "report": report}
    first = decided(world(train(), **running)).status.body()
    assert first["progress"] == {
        "step": 50,
        "totalSteps": 200,
        "percent": 25,
        "text": "50/200 (25%)",
        "loss": 1.235,
        "etaSeconds": 3700,
        "eta": "1h01m",
        "updated": STAMP,
    }
    later = {**running, "report": report.model_copy(update={"step": 51})}
    early = decided(world(train(first), now=NOW + timedelta(seconds=9), **later)).status.body()
    assert early["progress"]["step"] == 50
    late = decided(world(train(first), now=NOW + timedelta(seconds=10), **later)).status.body()
    assert late["progress"]["step"] == 51


def test_the_best_evaluation_is_in_the_status_and_an_early_stop_is_no_hundred_percent() -> None:
    best = {"step": 20, "metric": "loss", "value": 1.5}
    report = Report.model_validate({"step": 50, "totalSteps": 200, "best": best})
    first = decided(world(train(), children=children(job()), pods=(pod(),), report=report)).status.body()
    assert first["best"] == best
    better = best | {"step": 60}
    done = pod(**terminated(0, json.dumps({**DONE, "step": 80, "best": better})))
    last = decided(world(train(first), children=children(job(ended="Complete")), pods=(done,))).status.body()
    assert last["best"] == better
    assert (last["progress"]["step"], last["progress"]["text"]) == (80, "80/200 (stopped early)")


def test_what_a_job_made_ends_it() -> None:
    done = pod(**terminated(0, json.dumps(DONE)))
    decision = decided(world(train(begun()), children=children(job(ended="Complete")), pods=(done,)))
    assert succeeded(decision) == ("True", "Completed", "pvc://store/adapters/abc")
    assert decision.status.body()["attempts"][0] == {
        **attempt(), "endTime": STAMP, "reason": "Completed", "counted": False
    }  # fmt: skip


def test_a_job_without_an_artefact_failed() -> None:
    other = pod(**terminated(0, "hello"))
    found = succeeded(decided(world(train(begun()), children=children(job(ended="Complete")), pods=(other,))))
    assert found[:2] == ("False", "Internal")
    assert "reported no artefact" in found[2]


def test_the_transition_time_moves_only_with_the_status() -> None:
    first = decided(world(train(), missing=("x",))).status.body()
    later = decided(world(train(first), now=NOW + timedelta(hours=1))).status.body()
    assert later["conditions"][0]["reason"] != first["conditions"][0]["reason"]
    assert later["conditions"][0]["lastTransitionTime"] == STAMP


def test_what_a_cluster_puts_beside_the_trainer_does_not_hide_what_it_says() -> None:
    """A mesh's proxy that ends with the pod: the kubelet lists containers by name."""
    ended = terminated(0, json.dumps(DONE))
    for message in ({}, {"message": "drained"}, {"message": "{}"}):
        proxy = {"name": "istio-proxy", "state": {"terminated": {"exitCode": 0, **message}}}
        both = {**ended, "containerStatuses": [proxy, *ended["containerStatuses"]]}
        decision = decided(world(train(status=begun()), children=children(job(ended="Complete")), pods=(pod(**both),)))
        assert succeeded(decision) == ("True", "Completed", "pvc://store/adapters/abc")


def of_job(uid: str, pod: dict[str, Any]) -> dict[str, Any]:
    pod["metadata"]["ownerReferences"] = [{"kind": "Job", "uid": uid, "controller": True}]
    return pod


def test_pods_that_are_left_of_a_deleted_job_of_the_same_name_say_nothing_of_the_new_one() -> None:
    """`kubectl delete` and `apply` is how a job is mended, and the garbage collector takes its time."""
    bad = terminated(65, json.dumps({"reason": "DataError", "message": "row 7", "step": 900}))
    left = of_job("of-the-old-one", pod("old", **bad))
    first = decided(world(train(), pods=(left,)))
    assert succeeded(first)[:2] == ("Unknown", "Starting")
    assert first.status.body()["attempts"][0].get("lastStep") is None
    begins = world(train(status=begun()), children=children(job()), pods=(left, of_job("u-x-train-1", pod("new"))))
    assert succeeded(decided(begins))[:2] == ("Unknown", "Running")
    ended = world(train(status=begun()), children=children(job()), pods=(of_job("u-x-train-1", pod("new", **bad)),))
    assert succeeded(decided(ended))[:2] == ("False", "DataError")
