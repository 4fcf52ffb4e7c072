"""What is decided for InferenceJobs, and what their pods are; and that every table knows every kind."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from tunesmith.api.inferencejob import InferenceJob
from tunesmith.api.kinds import JOBS, MODELS, plural
from tunesmith.children.meta import WORK
from tunesmith.client.resources import RESOURCES
from tunesmith.decide.job import decide
from tunesmith.decide.jobkinds import KINDS
from tunesmith.decide.world import Decision
from tunesmith.kube import client
from tunesmith.prerequisites import Wanted, wanted
from tunesmith.reconcile import DECIDE
from tunesmith.schema import crd
from tunesmith.settings import load
from tunesmith.training.plan import InferencePlan, Job
from tunesmith.training.planning import inference_plan
from tunesmith.training.report import Report
from unit.operator.builders import (
    NOW,
    STAMP,
    attempt,
    begun,
    children,
    decided,
    finished,
    infer,
    job,
    merge,
    mine,
    pod,
    terminated,
    train,
    world,
)

TUNED = {("FineTuneJob", "tuned"): finished("FineTuneJob", "tuned")}
DONE = {
    "reason": "Completed",
    "step": 40,
    "artifact": {"kind": "results", "uri": "pvc://store/results/abc", "digest": "sha256:abc"},
    "metrics": {"accuracy": 0.75, "recall@1": 1.0},
}
ROWS = {"number": 1, "nodes": 1, "microBatchSize": 8}


def condition(decision: Decision) -> dict[str, Any]:
    return next(c for c in decision.status.body()["conditions"] if c["type"] == "Succeeded")


def made(decision: Decision, kind: str) -> dict[str, Any]:
    return next(one for one in decision.create if one["kind"] == kind)


@pytest.mark.parametrize(
    ("spec", "observed", "status", "reason", "message"),
    [
        ({}, {"references": {("FineTuneJob", "tuned"): None}}, "Unknown", "WaitingForReference",
         "FineTuneJob tuned does not exist yet"),
        ({}, {"references": {("FineTuneJob", "tuned"): finished("FineTuneJob", "tuned", "models")}}, "False",
         "ConfigError", "spec.adapter: FineTuneJob tuned made a whole model, but an adapter is needed here"),
        ({"model": {"fineTuneJobRef": {"name": "tuned"}}, "adapter": {"uri": "pvc://store/a"}},
         {"references": TUNED}, "False", "ConfigError",
         "spec.model: FineTuneJob tuned made an adapter, but a whole model is needed here: name it in spec.adapter, "
         "and here the base that it was trained from, hf://org/base"),
        ({}, {"references": TUNED, "missing": ("spec.datasets[0]: ConfigMap data does not exist",)}, "Unknown",
         "WaitingForInput", "spec.datasets[0]: ConfigMap data"),
        ({}, {"references": TUNED, "children": children(job(kind="infer")), "pods": (pod(phase="Pending"),)},
         "Unknown", "Starting", "0 of 1 pods run"),
        ({}, {"references": TUNED, "children": children(job(kind="infer")), "pods": (pod(),)}, "Unknown", "Running",
         "the pod runs"),
        ({"suspend": True}, {"references": TUNED}, "Unknown", "Suspended", "spec.suspend is true"),
    ],
)  # fmt: skip
def test_each_state_has_one_condition(
    spec: dict[str, Any], observed: dict[str, Any], status: str, reason: str, message: str
) -> None:
    found = condition(decided(world(infer(**spec), **observed)))
    assert (found["status"], found["reason"]) == (status, reason)
    assert message in found["message"]


def test_the_pod_asks_by_the_plan_and_sees_no_credentials_of_what_is_fetched_for_it() -> None:
    spec = {
        "model": {"uri": "hf://org/base@main", "secretRef": {"name": "hub"}},
        "datasets": [{"uri": "s3://rows/test.jsonl", "secretRef": {"name": "s3"}}, {"uri": "pvc://rows/more.jsonl"}],
        "generation": {"maxTokens": 9, "temperature": 0.5},
        "batchSize": 3,
        "maxRows": 7,
        "resources": {"limits": {"nvidia.com/gpu": 1}},
    }
    decision = decided(world(infer(**spec), references=TUNED))
    assert [(one["kind"], one["metadata"]["name"]) for one in decision.create] == [
        ("ConfigMap", "x-infer-1"),
        ("Job", "x-infer-1"),
    ]
    plan = InferencePlan.model_validate_json(made(decision, "ConfigMap")["data"]["plan.json"])
    assert plan.adapter
    assert plan.adapter.path == "/mnt/claims/store/adapters/abc"
    assert (plan.batch_size, plan.max_rows, plan.generation.max_tokens, plan.generation.top_p) == (3, 7, 9, 1.0)
    built = made(decision, "Job")["spec"]
    assert (built["completions"], built["backoffLimit"]) == (1, 0)
    pod_ = built["template"]["spec"]
    [trainer] = pod_["containers"]
    assert trainer["command"][2:] == ["tunesmith_trainer", "infer", "--plan", "/etc/tunesmith/plan.json"]
    assert trainer["resources"] == {"limits": {"nvidia.com/gpu": 1}}
    mounts = {one["name"]: one.get("readOnly", False) for one in trainer["volumeMounts"]}
    assert mounts == {
        "tmp": False, "shm": False, "plan": True, "fetched": True, "claim-rows": True, "claim-store": True,
        "claim-tunesmith-store": False,
    }  # fmt: skip
    fetchers = pod_["initContainers"]
    assert [one["command"][one["command"].index("--kind") + 1] for one in fetchers] == ["model", "dataset"]
    secrets = [[m["name"] for m in one["volumeMounts"] if "secret" in m["name"]] for one in fetchers]
    assert secrets == [["secret-hub"], ["secret-s3"]]
    # Every input of the plan is found where something is mounted.
    places = tuple(one["mountPath"] for one in trainer["volumeMounts"])
    assert all(one.path.startswith(places) for one in plan.inputs)
    assert len(plan.inputs) == 4


def test_all_that_a_spec_names_is_looked_for() -> None:
    model = {"uri": "pvc://base-claim/m"}
    body = infer(
        model=model, adapter={"uri": "pvc://store/a", "secretRef": {"name": "hub"}}, output={"uri": "pvc://out"}
    )
    assert list(wanted(InferenceJob.model_validate(body), "pvc://tunesmith-store")) == [
        Wanted("spec.model", "PersistentVolumeClaim", "base-claim"),
        Wanted("spec.adapter", "PersistentVolumeClaim", "store"),
        Wanted("spec.adapter", "Secret", "hub"),
        Wanted("spec.datasets[0]", "ConfigMap", "data", key="test.jsonl"),
        Wanted("spec.output.uri", "PersistentVolumeClaim", "out", writable=True),
    ]


def test_progress_in_rows_is_written_at_most_every_ten_seconds() -> None:
    report = Report(step=120, total_steps=500, resumed_step=100, step_seconds=0.25, eta_seconds=95)
    running = {"references": TUNED, "children": children(job(kind="infer")), "pods": (pod(),)}
    first = decided(world(infer(), report=report, **running)).status.body()
    assert first["progress"] == {
        "rows": 120, "totalRows": 500, "percent": 24, "text": "120/500 (24%)", "rowsPerSecond": 4.0, "etaSeconds": 95,
        "eta": "1m35s", "updated": STAMP,
    }  # fmt: skip
    assert (first["attempts"][0]["resumedStep"], first["attempts"][0]["lastStep"]) == (100, 120)
    later = report.model_copy(update={"step": 130})
    early = decided(world(infer(first), report=later, now=NOW + timedelta(seconds=9), **running))
    assert early.status.body()["progress"]["rows"] == 120
    late = decided(world(infer(first), report=later, now=NOW + timedelta(seconds=10), **running))
    assert late.status.body()["progress"]["rows"] == 130
    same = decided(world(infer(first), report=report, now=NOW + timedelta(seconds=10), **running))
    assert same.status.body()["progress"]["updated"] == STAMP, "nothing new is not written"


def test_what_it_found_ends_it() -> None:
    done = pod(**terminated(0, json.dumps(DONE)))
    decision = decided(world(infer(begun(ROWS)), children=children(job(ended="Complete", kind="infer")), pods=(done,)))
    assert (condition(decision)["reason"], condition(decision)["message"]) == ("Completed", "pvc://store/results/abc")
    status = decision.status.body()
    assert status["metrics"] == {"accuracy": 0.75, "recall@1": 1.0}
    assert status["artifact"]["kind"] == "results"
    assert (status["progress"]["rows"], status["progress"]["text"]) == (40, "40/40 (100%)")
    assert (status["attempts"][0]["lastStep"], status["attempts"][0]["reason"]) == (40, "Completed")


def stored(number: int, **more: Any) -> dict[str, Any]:
    """The ConfigMap with the plan of an attempt."""
    spec = InferenceJob.model_validate(infer()).spec
    owner = Job(namespace="ns", name="x", uid="uid")
    plan = inference_plan(owner, spec, {("FineTuneJob", "tuned"): "pvc://store/adapters/abc"}, "pvc://store")
    plan = plan.model_copy(update={"attempt": number, **more})
    return mine("ConfigMap", f"x-infer-{number}", data={"plan.json": plan.model_dump_json(by_alias=True)})


@pytest.mark.parametrize(
    ("reason", "size"), [("Interrupted", 8), ("Internal", 8), ("OutOfMemory", 4), ("Suspended", 8)]
)
def test_the_next_attempt_knows_its_number_and_after_out_of_memory_has_half_the_batch(reason: str, size: int) -> None:
    closed = begun(attempt(reason=reason, endTime="2026-01-02T03:00:00Z", microBatchSize=8, lastStep=16))
    decision = decided(world(infer(closed), references=TUNED, children=children(stored(1))))
    plan = json.loads(made(decision, "ConfigMap")["data"]["plan.json"])
    assert (plan["attempt"], plan["batchSize"]) == (2, size)
    assert decision.status.body()["attempts"][-1]["microBatchSize"] == size


def test_a_batch_of_one_row_that_is_too_large_fails() -> None:
    killed = pod(**terminated(137, reason="OOMKilled"))
    status = begun({**ROWS, "microBatchSize": 1})
    decision = decided(world(infer(status), children=children(job(kind="infer", ended="Failed")), pods=(killed,)))
    assert condition(decision)["reason"] == "OutOfMemory"
    assert "batchSize is 1 already" in condition(decision)["message"]


def test_attempts_that_answered_rows_do_not_count_as_idle() -> None:
    """Twelve preemptions, each after some rows."""
    closed = [
        attempt(n, reason="Preempted", endTime="2026-01-02T03:00:00Z", resumedStep=8 * n - 8, lastStep=8 * n)
        for n in range(3, 12)
    ]
    last = attempt(12, microBatchSize=8, resumedStep=88, lastStep=96)
    pods = (pod(attempt=12, **terminated(143, json.dumps({"reason": "Interrupted", "step": 96}))),)
    ended = children(job(12, kind="infer", ended="Failed"))
    assert condition(decided(world(infer(begun(*closed, last)), children=ended, pods=pods)))["status"] == "Unknown"


@pytest.mark.parametrize(("body", "name"), [(train(), "x-train-1"), (merge(), "x-merge-1"), (infer(), "x-infer-1")])
def test_the_pods_of_every_job_have_the_group_that_they_name(body: dict[str, Any], name: str) -> None:
    settings = load({"TUNESMITH_GANG_SCHEDULER": "Volcano"})
    decision = decide(world(body, references=TUNED), settings)
    assert decision is not None
    assert made(decision, "PodGroup")["metadata"]["name"] == name
    meta = made(decision, "Job")["spec"]["template"]["metadata"]
    assert meta["annotations"]["scheduling.k8s.io/group-name"] == name


def test_every_table_knows_every_kind() -> None:
    assert KINDS.keys() == WORK.keys() == JOBS.keys()
    assert DECIDE.keys() == RESOURCES.keys() == MODELS.keys() == {one.name for one in crd.KINDS}
    assert {kind: one.model for kind, one in KINDS.items()} == JOBS
    assert {one.name: one.model for one in crd.KINDS} == MODELS
    assert {one.name: one.plural for one in crd.KINDS} == {kind: plural(kind) for kind in MODELS}
    assert {client.RESOURCES[kind][1] for kind in MODELS} == {plural(kind) for kind in MODELS}
    assert all(issubclass(RESOURCES[kind], model) for kind, model in MODELS.items())
    assert len({one.short for one in crd.KINDS}) == len(MODELS)
