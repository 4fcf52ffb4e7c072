"""What is decided about pushing what a job has made, by table; and the Job that does it."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from tunesmith.api.base import Artifact
from tunesmith.api.finetunejob import FineTuneJob
from tunesmith.api.inferencejob import InferenceJob
from tunesmith.api.output import Destination
from tunesmith.children.meta import Owner
from tunesmith.children.push import push_job, push_name
from tunesmith.decide import lifecycle
from tunesmith.decide.job import decide
from tunesmith.decide.world import Decision, held
from tunesmith.prerequisites import wanted
from unit.operator.builders import NOW, SETTINGS, STAMP, children, finished, infer, job, mine, terminated, train, world

HUB = {"uri": "hf://org/tuned", "secretRef": {"name": "hub"}}
BUCKET = {"uri": "s3://bucket/tuned", "secretRef": {"name": "bucket"}}
OWNER = Owner.of(train())
REFUSED = {"reason": "ConfigError", "message": "hf://org/tuned: the Hub answers 403: the Secret needs `token`"}
AWAY = {"reason": "Internal", "message": "hf://org/tuned: the Hub answers 503"}


def done(*push: dict[str, Any], pushed: tuple[dict[str, Any], ...] = (), **spec: Any) -> dict[str, Any]:
    """A job that has succeeded."""
    status = {**finished("FineTuneJob", "x")["status"], "completionTime": STAMP, "pushed": list(pushed)}
    return train(status, output={"push": list(push)}, **spec)


def there(destination: dict[str, Any]) -> dict[str, Any]:
    return {"uri": destination["uri"], "digest": "sha256:abc", "time": STAMP}


def pushing(destination: dict[str, Any], ended: str | None = None) -> dict[str, Any]:
    conditions = [{"type": ended, "status": "True"}] if ended else []
    labels = {"tunesmith.io/role": "push"}
    return mine("Job", push_name(OWNER, destination["uri"]), labels=labels, status={"conditions": conditions})


def pod(destination: dict[str, Any], code: int, message: dict[str, Any], name: str = "p") -> dict[str, Any]:
    labels = {"batch.kubernetes.io/job-name": push_name(OWNER, destination["uri"])}
    return mine("Pod", name, labels=labels, spec={}, status=terminated(code, json.dumps(message)))


def said(decision: Decision, type_: str = "Pushed") -> tuple[str, str, str]:
    found = next(c for c in decision.status.body()["conditions"] if c["type"] == type_)
    return found["status"], found["reason"], found["message"]


def made(decision: Decision) -> list[str]:
    return [body["metadata"]["name"] for body in decision.create]


def decided(resource: dict[str, Any], *objects: dict[str, Any], pods: tuple[dict[str, Any], ...] = ()) -> Decision:
    decision = decide(world(resource, children=children(*objects), pods=pods), SETTINGS)
    assert decision is not None
    assert said(decision, "Succeeded")[:2] == ("True", "Completed"), "what has ended stays so"
    return decision


@pytest.mark.parametrize(
    "resource",
    [
        done(),
        done(HUB, pushed=(there(HUB),)),
        train(finished("FineTuneJob", "x", succeeded="False")["status"], output={"push": [HUB]}),
    ],
    ids=["nowhere to", "all is there", "failed"],
)
def test_nothing_is_pushed_and_nothing_read(resource: dict[str, Any]) -> None:
    assert not lifecycle.has_aftermath(FineTuneJob.model_validate(resource))
    assert decide(world(resource), SETTINGS) is None


def test_a_job_that_still_runs_pushes_nothing() -> None:
    decision = decide(world(train(output={"push": [HUB]})), SETTINGS)
    assert decision
    assert not any("push" in name for name in made(decision))


def test_each_destination_has_a_job_of_its_own_beside_the_finished_one() -> None:
    decision = decided(done(HUB, BUCKET), job(1, "Complete"))
    assert made(decision) == [push_name(OWNER, one["uri"]) for one in (HUB, BUCKET)]
    assert len({*made(decision)}) == 2
    assert all(len(name) <= len(OWNER.name) + 14 for name in made(decision))
    assert said(decision) == (
        "Unknown", "Pushing", "hf://org/tuned: its pod starts; s3://bucket/tuned: its pod starts",
    )  # fmt: skip
    assert decision.delete == ()


def test_answers_are_pushed_as_what_others_make_is() -> None:
    made_of = {"artifact": {"kind": "results", "uri": "pvc://store/results/abc", "digest": "sha256:abc"}}
    status = {**finished("InferenceJob", "x")["status"], **made_of}
    resource = infer(status, output={"push": [HUB]})
    [body] = decided(resource, job(1, "Complete", kind="infer")).create
    [container] = body["spec"]["template"]["spec"]["containers"]
    assert "/mnt/claims/store/results/abc" in container["command"]
    assert body["metadata"]["ownerReferences"][0]["kind"] == "InferenceJob"
    found = list(wanted(InferenceJob.model_validate(resource), "pvc://store"))
    assert ("spec.output.push[0]", "Secret", "hub") in [(one.field, one.kind, one.name) for one in found]


COMMIT = {**there(HUB), "revision": "c0ffee"}


@pytest.mark.parametrize(
    ("ended", "pods", "status", "reason", "message"),
    [
        (None, (), "Unknown", "Pushing", "hf://org/tuned: it is on its way"),
        (None, (pod(HUB, 1, AWAY),), "Unknown", "Pushing", "hf://org/tuned: the Hub answers 503. It is tried"),
        ("Complete", (pod(HUB, 1, AWAY), pod(HUB, 0, COMMIT, "q")), "True", "Pushed", "hf://org/tuned (c0ffee)"),
        ("Complete", (), "True", "Pushed", "hf://org/tuned"),
        ("Failed", (pod(HUB, 2, REFUSED),), "False", "PushRefused", REFUSED["message"]),
        ("Failed", (pod(HUB, 1, AWAY),), "False", "PushFailed", AWAY["message"]),
        ("Failed", (), "False", "PushFailed", "hf://org/tuned: its pods are gone, and left no word"),
    ],
)
def test_what_becomes_of_a_push_is_the_condition(
    ended: str | None, pods: tuple[dict[str, Any], ...], status: str, reason: str, message: str
) -> None:
    decision = decided(done(HUB), pushing(HUB, ended), pods=pods)
    found = said(decision)
    assert found[:2] == (status, reason)
    assert found[2].startswith(message)
    if status == "False":
        assert f"delete Job {push_name(OWNER, HUB['uri'])}" in found[2]
    assert [event.type for event in decision.events] == {"True": ["Normal"], "False": ["Warning"]}.get(status, [])
    assert [one["uri"] for one in decision.status.body().get("pushed", [])] == (
        ["hf://org/tuned"] if status == "True" else []
    )


def test_one_that_fails_does_not_hold_up_another() -> None:
    decision = decided(
        done(HUB, BUCKET), pushing(HUB, "Failed"), pushing(BUCKET, "Complete"),
        pods=(pod(HUB, 2, REFUSED), pod(BUCKET, 0, there(BUCKET), "q")),
    )  # fmt: skip
    assert said(decision)[:2] == ("False", "PushRefused")
    assert decision.status.body()["pushed"] == [there(BUCKET)]


def test_a_failed_push_whose_job_is_deleted_is_tried_again() -> None:
    before = decided(done(HUB), pushing(HUB, "Failed"), pods=(pod(HUB, 2, REFUSED),)).status.body()
    resource = done(HUB)
    again = decided({**resource, "status": before})
    assert made(again) == [push_name(OWNER, HUB["uri"])]
    assert said(again)[:2] == ("Unknown", "Pushing")


def test_a_destination_that_is_added_later_is_pushed_to_then() -> None:
    decision = decided(done(HUB, BUCKET, pushed=(there(HUB),)))
    assert made(decision) == [push_name(OWNER, BUCKET["uri"])]
    assert [one["uri"] for one in decision.status.body()["pushed"]] == [HUB["uri"]]


def test_a_failed_destination_that_is_taken_back_is_not_spoken_of() -> None:
    before = decided(done(HUB), pushing(HUB, "Failed"), pods=(pod(HUB, 2, REFUSED),)).status.body()
    decision = decided({**done(), "status": before})
    assert [c["type"] for c in decision.status.body()["conditions"]] == ["Succeeded"]


def test_a_job_of_another_is_not_taken_for_ours() -> None:
    other = pushing(HUB, "Complete")
    other["metadata"]["ownerReferences"] = []
    decision = decided(done(HUB), other)
    assert made(decision) == []
    assert "does not belong to this FineTuneJob" in said(decision)[2]


def test_what_is_pushed_is_not_deleted_before_it_is_there() -> None:
    resource = done(HUB, cleanPodPolicy="All", ttlSecondsAfterFinished=1)
    objects = (job(1, "Complete"), pushing(HUB))
    after = NOW + timedelta(hours=1)
    on_its_way = decide(world(resource, now=after, children=children(*objects)), SETTINGS)
    assert on_its_way
    assert [body["metadata"]["name"] for body in on_its_way.delete] == ["x-train-1"]
    over = (job(1, "Complete"), pushing(HUB, "Complete"))
    there_now = decide(world(resource, now=after, children=children(*over)), SETTINGS)
    assert there_now
    assert there_now.delete == (resource,)


@pytest.mark.parametrize(("ended", "written", "kept"), [
    ("Failed", False, True), ("Complete", False, True), ("Complete", True, False),
])  # fmt: skip
def test_with_all_pods_those_that_could_not_push_and_those_not_yet_written_of_stay(
    ended: str, written: bool, kept: bool
) -> None:
    resource = done(HUB, cleanPodPolicy="All", pushed=(there(HUB),) if written else ())
    decision = decided(resource, job(1, "Complete"), pushing(HUB, ended))
    names = [body["metadata"]["name"] for body in decision.delete]
    assert names == ["x-train-1", *([] if kept else [push_name(OWNER, HUB["uri"])])]


def test_a_pushing_job_that_the_api_server_rejects_does_not_begin_the_job_again() -> None:
    resource = done(HUB)
    status = FineTuneJob.model_validate(resource).status
    found = {c.type: (c.status, c.reason) for c in held(world(resource), status, "Rejected", "quota").conditions}
    assert found == {"Succeeded": ("True", "Completed"), "Pushed": ("Unknown", "Rejected")}
    assert lifecycle.terminal(held(world(resource), status, "Rejected", "quota"))


def test_the_credentials_are_in_the_pushing_container_and_the_store_cannot_be_written() -> None:
    artifact = Artifact(kind="adapters", uri="pvc://store/adapters/abc", digest="sha256:abc")
    spec = FineTuneJob.model_validate(done(HUB)).spec
    body = push_job(OWNER, Destination.model_validate(HUB), artifact, spec, SETTINGS)
    pod = body["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert "initContainers" not in pod
    assert {m["mountPath"]: m.get("readOnly") for m in container["volumeMounts"]} == {
        "/tmp": None, "/mnt/claims/store": True, "/mnt/secrets/hub": True,
    }  # fmt: skip
    assert container["command"][3:] == [
        "--artifact", "/mnt/claims/store/adapters/abc", "--uri", "hf://org/tuned",
        "--termination-log", "/dev/termination-log", "--secret", "/mnt/secrets/hub",
    ]  # fmt: skip
    assert not pod["automountServiceAccountToken"]
    public = push_job(OWNER, Destination.model_validate({**HUB, "private": False}), artifact, spec, SETTINGS)
    assert "--public" in public["spec"]["template"]["spec"]["containers"][0]["command"]


def test_secrets_of_destinations_are_looked_for_before_the_job_begins() -> None:
    found = list(wanted(FineTuneJob.model_validate(train(output={"push": [HUB, BUCKET]})), "pvc://store"))
    assert [(one.field, one.name) for one in found if one.kind == "Secret"] == [
        ("spec.output.push[0]", "hub"), ("spec.output.push[1]", "bucket"),
    ]  # fmt: skip
