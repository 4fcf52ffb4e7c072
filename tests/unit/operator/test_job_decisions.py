"""What is decided for FineTuneJobs and MergeJobs, by table."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from tunesmith.decide.job import MAX_ATTEMPTS, decide
from tunesmith.decide.world import Decision, World
from tunesmith.settings import Settings
from tunesmith.training.report import Report
from unit.operator.builders import NOW, STAMP, children, finished, job, merge, mine, pod, terminated, train, world

SETTINGS = Settings()
FAILED = {"reason": "DataError", "message": "row 17: no answer", "rank": 1, "log": ["a", "b"]}
DONE = {
    "reason": "Completed",
    "artifact": {"kind": "adapters", "uri": "pvc://store/adapters/abc", "digest": "sha256:abc"},
    "logitError": 0.001,
}


def decided(world: World) -> Decision:
    decision = decide(world, SETTINGS)
    assert decision is not None
    return decision


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
        (
            world(train(), children=children(job(ended="Failed")), pods=(pod(**terminated(65, json.dumps(FAILED))),)),
            "False",
            "DataError",
            "row 17: no answer",
        ),
        (
            world(
                train(),
                children=children(job(ended="Failed")),
                pods=(pod(**terminated(137, "", reason="OOMKilled")),),
            ),
            "False",
            "OutOfMemory",
            "raise spec.resources.limits.memory",
        ),
        (
            world(
                train(),
                children=children(job(ended="Failed")),
                pods=(pod(**terminated(1, "Traceback\nValueError: no")),),
            ),
            "False",
            "Internal",
            "ended with exit code 1: ValueError: no",
        ),
        (
            world(train(), children=children(job(ended="Complete")), pods=(pod(**terminated(0, json.dumps(DONE))),)),
            "True",
            "Completed",
            "pvc://store/adapters/abc",
        ),
        (
            world(train(), children=children(job(ended="Complete")), pods=(pod(**terminated(0, "hello")),)),
            "False",
            "Internal",
            "reported no artefact",
        ),
        (world(train(), children=children(job(ended="Failed"))), "Unknown", "Restarting", "attempt 2 begins"),
        (world(train(), children=children(job(ended="FailureTarget"))), "Unknown", "Restarting", "its pods are ending"),
        (
            world(
                train(),
                children=children(job(ended="FailureTarget")),
                pods=(pod("a"), pod("b", **terminated(65, json.dumps(FAILED)))),
            ),
            "False",
            "DataError",
            "row 17",
        ),
        (
            world(train(), children=children(job(MAX_ATTEMPTS, ended="Failed"))),
            "False",
            "Interrupted",
            f"attempt {MAX_ATTEMPTS}, the last",
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
    assert kinds(decided(world(train())).create) == [("ConfigMap", "x-train-plan"), ("Job", "x-train-1")]
    assert kinds(decided(world(train(nodes=2))).create) == [
        ("ConfigMap", "x-train-plan"),
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
        train(), children=children(mine("ConfigMap", "x-train-plan", data=plan["data"]), job()), pods=(pod(),)
    )
    later = decide(observed, SETTINGS.model_copy(update={"default_store": "pvc://elsewhere"}))
    assert later is not None
    volumes = next(o for o in later.create if o["kind"] == "Job")["spec"]["template"]["spec"]["volumes"]
    assert {"name": "claim-tunesmith-store", "persistentVolumeClaim": {"claimName": "tunesmith-store"}} in volumes
    assert "elsewhere" not in json.dumps(later.create)


def test_the_failure_of_the_first_pod_is_told_not_of_those_that_die_of_it() -> None:
    lost = {"reason": "PeerLost", "message": "connection closed by peer"}
    pods = (
        pod("p1", **terminated(69, json.dumps(lost), "2026-01-02T03:00:01Z")),
        pod("p0", **terminated(65, json.dumps(FAILED), "2026-01-02T03:00:09Z")),
    )
    status = decided(world(train(nodes=2), children=children(job(ended="Failed")), pods=pods)).status.body()
    assert status["failure"] == {**FAILED, "pod": "p0", "exitCode": 65}


def test_a_restart_runs_under_new_names_so_that_old_pods_cannot_meet_new_ones() -> None:
    decision = decided(world(train(nodes=2), children=children(job(ended="Failed"))))
    assert kinds(decision.create) == [("Service", "x-train-2"), ("Job", "x-train-2")]
    env = decision.create[1]["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "MASTER_ADDR", "value": "x-train-2-0.x-train-2"} in env


def test_only_the_newest_attempt_counts() -> None:
    observed = world(train(), children=children(job(1, ended="Failed"), job(2)), pods=(pod("q", attempt=2),))
    assert succeeded(decided(observed))[1] == "Running"


def test_a_merge_reports_the_error_of_its_logits() -> None:
    observed = world(
        merge(),
        children=children(job(ended="Complete", kind="merge")),
        pods=(pod(**terminated(0, json.dumps(DONE))),),
    )
    assert decided(observed).status.body()["logitError"] == 0.001


def test_progress_is_written_at_most_every_ten_seconds() -> None:
    report = Report(step=50, total_steps=200, loss=1.23456, eta_seconds=3700)
    running = {"children": children(job()), "pods": (pod(),), "report": report}
    first = decided(world(train(), **running)).status.body()
    assert first["progress"] == {
        "step": 50,
        "totalSteps": 200,
        "percent": 25,
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


def test_the_transition_time_moves_only_with_the_status() -> None:
    first = decided(world(train(), missing=("x",))).status.body()
    later = decided(world(train(first), now=NOW + timedelta(hours=1))).status.body()
    assert later["conditions"][0]["reason"] != first["conditions"][0]["reason"]
    assert later["conditions"][0]["lastTransitionTime"] == STAMP
