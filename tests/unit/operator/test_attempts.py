"""How attempts end, what follows, and that no step of it depends on the operator's being there."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from tunesmith.api.finetunejob import FineTuneJob
from tunesmith.decide.endings import ENDINGS, Action
from tunesmith.decide.job import decide
from tunesmith.decide.world import Decision
from tunesmith.training.plan import Job
from tunesmith.training.planning import train_plan
from tunesmith.training.report import Report
from unit.operator.builders import (
    NOW,
    SETTINGS,
    STAMP,
    attempt,
    begun,
    children,
    decided,
    going,
    job,
    merge,
    mine,
    pod,
    terminated,
    train,
    world,
)

WATCHDOG = (
    "[rank1]:[E ProcessGroupNCCL.cpp:629] [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, "
    "OpType=ALLREDUCE, Timeout(ms)=600000) ran for 600029 milliseconds before timing out."
)


def said(reason: str, message: str = "so it was", **more: Any) -> str:
    return json.dumps({"reason": reason, "message": message, **more})


def last(decision: Decision) -> dict[str, Any]:
    found: dict[str, Any] = decision.status.body()["attempts"][-1]
    return found


def word(decision: Decision) -> tuple[str, str]:
    condition = next(c for c in decision.status.body()["conditions"] if c["type"] == "Succeeded")
    return condition["status"], condition["reason"]


def message(decision: Decision) -> str:
    text: str = next(c for c in decision.status.body()["conditions"] if c["type"] == "Succeeded")["message"]
    return text


EVICTED = {"phase": "Failed", "reason": "Evicted"}
LOST = said("PeerLost", "connection closed by peer")


@pytest.mark.parametrize(
    ("pods", "reason"),
    [
        ([pod(**terminated(64, said("ConfigError")))], "ConfigError"),
        ([pod(**terminated(65, said("DataError")))], "DataError"),
        ([pod(**terminated(66, said("ModelError")))], "ModelError"),
        ([pod(**terminated(68, said("OutOfMemory")))], "OutOfMemory"),
        ([pod(**terminated(137, "", reason="OOMKilled"))], "OutOfMemory"),
        ([pod(**terminated(71, said("LossDiverged")))], "LossDiverged"),
        ([pod(**terminated(72, said("CollectiveTimeout")))], "CollectiveTimeout"),
        ([pod(**terminated(1, "Traceback\nValueError: no"))], "Internal"),
        ([pod(**terminated(1, f"{WATCHDOG}\nSignal 6 (SIGABRT) received by PID 41"))], "CollectiveTimeout"),
        ([pod(**terminated(137, ""))], "Killed"),
        ([pod(**terminated(143, said("Interrupted")))], "Interrupted"),
        ([pod(**terminated(143, ""))], "Interrupted"),
        ([going(pod(**terminated(137, "")))], "Interrupted"),
        ([going(pod(**terminated(143, said("Interrupted"))), "PreemptionByScheduler")], "Preempted"),
        ([going(pod(**terminated(143, said("Interrupted"))), "EvictionByEvictionAPI")], "Drained"),
        ([going(pod(), "DeletionByTaintManager")], "NodeLost"),
        ([going(pod(), "TerminationByKubelet")], "Evicted"),
        ([pod(**EVICTED, message="The node was low on resource: memory.")], "Evicted"),
        ([pod(**EVICTED, message="Pod ephemeral local storage usage exceeds the total limit of 1Gi")], "DiskFull"),
        ([pod(**terminated(255, "", reason="Unknown"))], "NodeLost"),
        ([pod(**terminated(137, "", reason="ContainerStatusUnknown"))], "NodeLost"),
        ([], "Interrupted"),
        # of several, the one that failed of itself, whatever the clocks say
        (
            [
                pod("a", **terminated(69, LOST, "2026-01-02T03:00:01Z")),
                pod("b", **terminated(65, said("DataError"), "2026-01-02T03:00:09Z")),
            ],
            "DataError",
        ),
        (
            [
                going(pod("a", **terminated(143, said("Interrupted"))), "PreemptionByScheduler"),
                pod("b", **terminated(69, LOST)),
            ],
            "Preempted",
        ),
        ([pod("a", **terminated(69, LOST)), pod("b", **terminated(69, LOST))], "PeerLost"),
    ],
)
def test_each_ending_has_its_class(pods: list[dict[str, Any]], reason: str) -> None:
    observed = world(train(begun()), children=children(job(ended="Failed")), pods=tuple(pods))
    decision = decided(observed)
    assert last(decision)["reason"] == reason
    assert (word(decision)[0] == "False") == (ENDINGS[reason].action is Action.FAIL or reason == "OutOfMemory")


def test_every_class_of_the_trainer_is_in_the_table() -> None:
    from typing import get_args

    from tunesmith.training.report import FailureClass

    assert set(get_args(FailureClass)) <= ENDINGS.keys()


def test_the_failure_tells_pod_rank_exit_code_and_log() -> None:
    told = said("DataError", "row 17: no answer", rank=3, log=["a", "b"])
    status = decided(
        world(train(begun()), children=children(job(ended="Failed")), pods=(pod(**terminated(65, told)),))
    ).status.body()
    assert status["failure"] == {
        "reason": "DataError", "message": "row 17: no answer", "pod": "p0", "rank": 3, "exitCode": 65, "log": ["a", "b"]
    }  # fmt: skip
    assert status["completionTime"] == STAMP


def test_nothing_follows_before_the_end_is_written_and_every_pod_is_gone() -> None:
    failed = pod("a", **terminated(1, "no"))
    ending = decided(
        world(train(begun(), nodes=2), children=children(job(ended="FailureTarget")), pods=(failed, pod("b")))
    )
    assert last(ending)["reason"] == "Internal"
    assert "endTime" not in last(ending)
    assert not ending.create
    status = ending.status.body()
    still = decided(
        world(train(status, nodes=2), children=children(job(ended="FailureTarget")), pods=(failed, pod("b")))
    )
    assert not still.create
    assert not still.delete
    assert "endTime" not in last(still)
    closed = decided(world(train(status, nodes=2), children=children(job(ended="Failed")), pods=(failed,)))
    assert last(closed)["endTime"] == STAMP
    assert not closed.create
    assert closed.again == 10
    assert closed.status.body()["restarts"] == 1
    waiting = decided(world(train(closed.status.body(), nodes=2), children=children(job(ended="Failed"))))
    assert not waiting.create
    assert waiting.again == 10
    later = NOW + timedelta(seconds=10)
    begins = decided(world(train(closed.status.body(), nodes=2), children=children(job(ended="Failed")), now=later))
    assert [(o["kind"], o["metadata"]["name"]) for o in begins.create] == [
        ("ConfigMap", "x-train-2"),
        ("Service", "x-train-2"),
        ("Job", "x-train-2"),
    ]
    assert last(begins)["number"] == 2


def test_an_attempt_waits_for_the_pods_of_the_one_before() -> None:
    closed = begun(attempt(endTime=STAMP, reason="Interrupted"))
    observed = world(train(closed), pods=(going(pod(attempt=1)),))
    assert not decided(observed).create
    assert "p0" in message(decided(observed))


@pytest.mark.parametrize(("done", "wait"), [(0, 10), (1, 20), (2, 40)])
def test_the_backoff_doubles(done: int, wait: float) -> None:
    status = begun(attempt(reason="Internal", counted=True), restarts=done)
    decision = decided(world(train(status, restartPolicy={"maxRestarts": 9}), children=children(job(ended="Failed"))))
    assert decision.again == wait


def test_a_pod_that_is_deleted_before_its_artefact_is_read_makes_it_again() -> None:
    ending = decided(world(train(begun()), children=children(job(ended="Complete"))))
    assert (word(ending), last(ending)["reason"]) == (("Unknown", "Restarting"), "Interrupted")
    closed = decided(world(train(ending.status.body()), children=children(job(ended="Complete"))))
    again = decided(world(train(closed.status.body()), children=children(job(ended="Complete"))))
    assert ("Job", "x-train-2") in [(o["kind"], o["metadata"]["name"]) for o in again.create]


def test_restarts_are_counted_and_used_up() -> None:
    status = begun(restarts=3)
    failed = (pod(**terminated(1, "no")),)
    decision = decided(world(train(status), children=children(job(ended="Failed")), pods=failed))
    assert word(decision) == ("False", "Internal")
    assert "maxRestarts: 3 used up" in message(decision)


def test_what_is_taken_away_is_not_counted() -> None:
    status = begun(attempt(reason="Interrupted", lastStep=5), restarts=3)
    decision = decided(world(train(status), children=children(job(ended="Failed"))))
    assert decision.status.body()["interruptions"] == 1
    assert decision.status.body()["restarts"] == 3
    assert decision.again == 0


def test_a_job_that_is_always_taken_away_before_its_first_step_fails_in_the_end() -> None:
    idle = [attempt(n, reason="Interrupted", endTime=STAMP) for n in range(1, 10)]
    decision = decided(world(train(begun(*idle, attempt(10))), children=children(job(10, ended="Failed"))))
    assert word(decision) == ("False", "Interrupted")
    idle[4]["lastStep"] = 7  # it does get on
    decision = decided(world(train(begun(*idle, attempt(10))), children=children(job(10, ended="Failed"))))
    assert word(decision) == ("Unknown", "Restarting")


def stored_plan(number: int, **spec: Any) -> dict[str, Any]:
    body = train(**spec)
    plan = train_plan(Job(namespace="ns", name="x", uid="u"), FineTuneJob.model_validate(body).spec, {}, "pvc://s")
    return mine("ConfigMap", f"x-train-{number}", data={"plan.json": json.dumps(plan.body())})


def plan_of(decision: Decision) -> dict[str, Any]:
    config = next(o for o in decision.create if o["kind"] == "ConfigMap")
    plan: dict[str, Any] = json.loads(config["data"]["plan.json"])
    return plan


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_global_one() -> None:
    spec: dict[str, Any] = {"training": {"globalBatchSize": 16, "microBatchSize": 4}}
    closed = begun(attempt(microBatchSize=4, reason="OutOfMemory", endTime=STAMP))
    plan = plan_of(decided(world(train(closed, **spec), children=children(stored_plan(1, **spec)))))
    assert plan["training"]["microBatchSize"] == 2
    assert plan["training"]["globalBatchSize"] == 16
    assert plan["training"]["gradientAccumulationSteps"] == 8
    assert plan["attempt"] == 2


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [((8,), None), ((8, 4), None), ((8, 4, 2), "halved 2 times"), ((1,), "microBatchSize is 1 already")],
)
def test_the_micro_batch_is_halved_at_most_twice(sizes: tuple[int, ...], reason: str | None) -> None:
    before = [
        attempt(n, microBatchSize=size, reason="OutOfMemory", endTime=STAMP) for n, size in enumerate(sizes[:-1], 1)
    ]
    number = len(sizes)
    open_ = attempt(number, microBatchSize=sizes[-1])
    killed = pod(attempt=number, **terminated(137, reason="OOMKilled"))
    decision = decided(
        world(train(begun(*before, open_)), children=children(job(number, ended="Failed")), pods=(killed,))
    )
    assert word(decision)[0] == ("False" if reason else "Unknown")
    assert (reason or "") in message(decision)


def test_a_merge_that_needs_too_much_memory_fails_at_once() -> None:
    killed = pod(**terminated(137, reason="OOMKilled"))
    status = begun({"number": 1, "nodes": 1})
    decision = decided(world(merge(status), children=children(job(kind="merge", ended="Failed")), pods=(killed,)))
    assert word(decision) == ("False", "OutOfMemory")


def test_a_run_keeps_what_it_began_with() -> None:
    closed = begun(attempt(reason="Interrupted", endTime=STAMP))
    decision = decide(
        world(train(closed), children=children(stored_plan(1))),
        SETTINGS.model_copy(update={"default_store": "pvc://elsewhere"}),
    )
    assert decision is not None
    assert "elsewhere" not in json.dumps(decision.create)


def test_elastic_nodes_begin_with_fewer_after_a_wait_and_keep_the_global_batch() -> None:
    spec: dict[str, Any] = {"nodes": 4, "elastic": {"minNodes": 1, "waitSeconds": 30}}
    live = job() | {"status": {"startTime": STAMP}}
    pending = [pod(f"p{n}", rank=n) for n in range(3)]
    waiting = pod("p3", rank=3, phase="Pending")
    waiting["spec"] = {}
    status, things = begun(attempt(nodes=4)), children(live, stored_plan(1, **spec))
    early = decided(world(train(status, **spec), children=things, pods=(*pending, waiting)))
    assert word(early) == ("Unknown", "Starting")
    late = world(train(status, **spec), children=things, pods=(*pending, waiting), now=NOW + timedelta(seconds=31))
    ended = decided(late)
    assert last(ended)["reason"] == "TooFewNodes"
    assert last(ended)["scheduledNodes"] == 3
    assert not ended.delete  # first it is written down
    deleting = decided(world(train(ended.status.body(), **spec), children=things, pods=(*pending, waiting)))
    assert [o["metadata"]["name"] for o in deleting.delete] == ["x-train-1"]
    closed = decided(world(train(ended.status.body(), **spec), children=children(stored_plan(1, **spec))))
    plan = plan_of(decided(world(train(closed.status.body(), **spec), children=children(stored_plan(1, **spec)))))
    assert plan["nodes"] == 2  # 16 rows cannot be divided among 3
    assert plan["training"]["gradientAccumulationSteps"] == 8


def test_fewer_nodes_than_the_least_are_waited_for() -> None:
    spec: dict[str, Any] = {"nodes": 4, "elastic": {"minNodes": 2, "waitSeconds": 30}}
    live = job() | {"status": {"startTime": STAMP}}
    observed = world(
        train(begun(attempt(nodes=4)), **spec),
        children=children(live, stored_plan(1, **spec)),
        pods=(pod(),),
        now=NOW + timedelta(hours=1),
    )
    assert word(decided(observed)) == ("Unknown", "Starting")


def test_pods_on_a_lost_node_are_not_waited_for() -> None:
    lost = going(pod(), "DeletionByTaintManager", since="2026-01-02T03:06:00Z")
    observed = world(train(begun()), children=children(job()), pods=(lost,))
    assert decided(observed).kill == ()
    assert decided(world(train(begun()), children=children(job()), pods=(lost,), lost_nodes=frozenset({"node-1"}))).kill
    overdue = NOW + timedelta(minutes=5)
    assert decided(world(train(begun()), children=children(job()), pods=(lost,), now=overdue)).kill


def test_a_standstill_is_said_and_may_restart() -> None:
    report = Report(step=7, total_steps=10, step_seconds=2.0, idle_seconds=400)
    running = {"children": children(job()), "pods": (pod(),), "report": report}
    still = decided(world(train(begun()), **running))
    condition = next(c for c in still.status.body()["conditions"] if c["type"] == "Stalled")
    assert condition["status"] == "True"
    assert "no step since step 7, for 6m40s; a step usually takes 2s" in condition["message"]
    assert last(decided(world(train(begun(), stall={"action": "Restart"}), **running)))["reason"] == "Stalled"
    moving = {**running, "report": report.model_copy(update={"idle_seconds": 1.0})}
    again = decided(world(train(still.status.body()), **moving)).status.body()
    assert next(c for c in again["conditions"] if c["type"] == "Stalled")["status"] == "False"


def test_suspension_ends_the_pods_and_resuming_begins_a_new_attempt() -> None:
    running = {"children": children(job()), "pods": (pod(),)}
    first = decided(world(train(begun(), suspend=True), **running))
    assert last(first)["reason"] == "Suspended"
    assert not first.delete
    second = decided(world(train(first.status.body(), suspend=True), **running))
    assert [o["metadata"]["name"] for o in second.delete] == ["x-train-1"]
    third = decided(world(train(second.status.body(), suspend=True), pods=(going(pod()),)))
    assert word(third) == ("Unknown", "Suspending")
    done = decided(world(train(third.status.body(), suspend=True)))
    assert word(done) == ("Unknown", "Suspended")
    assert "startTime" not in done.status.body()
    idle = decided(world(train(done.status.body(), suspend=True)))
    assert idle.status == done.status
    resumed = decided(world(train(done.status.body())))
    assert ("Job", "x-train-2") in [(o["kind"], o["metadata"]["name"]) for o in resumed.create]
    assert resumed.status.body()["startTime"] == STAMP
    suspended = next(c for c in resumed.status.body()["conditions"] if c["type"] == "Suspended")
    assert suspended["status"] == "False"


def test_a_job_that_is_made_suspended_makes_no_pod() -> None:
    decision = decided(world(train(suspend=True)))
    assert word(decision) == ("Unknown", "Suspended")
    assert not decision.create


def test_the_deadline_is_the_jobs_and_counts_between_attempts_too() -> None:
    begins = decided(world(train(activeDeadlineSeconds=100)))
    assert begins.create[-1]["spec"]["activeDeadlineSeconds"] == 100
    closed = begun(attempt(reason="Internal", endTime=STAMP))
    later = NOW + timedelta(seconds=40)
    again = decided(world(train(closed, activeDeadlineSeconds=100), now=later))
    assert again.create[-1]["spec"]["activeDeadlineSeconds"] == 60
    over = decided(world(train(closed, activeDeadlineSeconds=100), now=NOW + timedelta(seconds=100)))
    assert word(over) == ("False", "DeadlineExceeded")
    ended = job()
    ended["status"]["conditions"] = [{"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}]
    killed = (pod(**terminated(143, said("Interrupted"))),)
    live = decided(world(train(begun(), activeDeadlineSeconds=100), children=children(ended), pods=killed))
    assert word(live) == ("False", "DeadlineExceeded")


def over(policy: dict[str, Any]) -> dict[str, Any]:
    condition = {
        "type": "Succeeded", "status": "True", "reason": "Completed", "message": "", "lastTransitionTime": STAMP,
        "observedGeneration": 1,
    }  # fmt: skip
    return train({"conditions": [condition], "completionTime": STAMP, "observedGeneration": 3}, **policy)


def test_a_job_that_is_over_is_deleted_when_its_time_to_live_is() -> None:
    policy = {"ttlSecondsAfterFinished": 60}
    early = decided(world(over(policy), now=NOW + timedelta(seconds=20)))
    assert (early.delete, early.again) == ((), 40)
    late = decided(world(over(policy), now=NOW + timedelta(seconds=60)))
    assert [o["kind"] for o in late.delete] == ["FineTuneJob"]


def test_ended_pods_are_kept_unless_the_policy_says_all() -> None:
    done = children(job(ended="Complete"))
    assert decide(world(over({}), children=done), SETTINGS) is None
    assert [o["kind"] for o in decided(world(over({"cleanPodPolicy": "All"}), children=done)).delete] == ["Job"]


def test_a_queued_job_is_made_suspended_and_mirrors_its_admission() -> None:
    spec = {"queueName": "team", "priority": "high"}
    made = decided(world(train(**spec))).create[-1]
    assert made["spec"]["suspend"] is True
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    assert made["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "high"
    live = job()
    live["spec"]["suspend"] = True
    condition = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": "insufficient quota"}
    workload = {"status": {"conditions": [condition]}}
    waits = decided(world(train(begun(), **spec), children=children(live), workload=workload))
    assert word(waits) == ("Unknown", "Queued")
    assert message(waits) == "queue team: insufficient quota"
    live["spec"]["suspend"] = False
    admitted = decided(world(train(waits.status.body(), **spec), children=children(live), pods=(pod(),)))
    assert next(c for c in admitted.status.body()["conditions"] if c["type"] == "Admitted")["status"] == "True"
    live["spec"]["suspend"] = True
    preempted = decided(world(train(admitted.status.body(), **spec), children=children(live)))
    assert [event.reason for event in preempted.events] == ["Preempted"]
    assert "reason" not in last(preempted)  # the same Job goes on when it is admitted again


def test_device_hours_are_counted_asked_used_and_lost() -> None:
    spec: dict[str, Any] = {
        "resources": {"limits": {"nvidia.com/gpu": 4}},
        "nodes": 1,
        "training": {"globalBatchSize": 16},
    }
    settings = SETTINGS.model_copy(update={"prices": {"nvidia.com/gpu": 2.0}})

    def step(status: dict[str, Any], minutes: int, **observed: Any) -> dict[str, Any]:
        decision = decide(world(train(status, **spec), now=NOW + timedelta(minutes=minutes), **observed), settings)
        assert decision is not None
        return decision.status.body()

    status = step({}, 0)
    running: dict[str, Any] = {"children": children(job(), stored_plan(1, **spec)), "pods": (pod(),)}
    status = step(status, 30, **running)  # half an hour until the pod ran
    report = Report(step=100, total_steps=1000, step_seconds=36.0, checkpoint_step=50, idle_seconds=0, resumed_step=0)
    status = step(status, 90, **running, report=report)
    assert status["accounting"]["askedHours"] == 6
    assert status["accounting"]["usedHours"] == 4
    assert status["accounting"]["cost"] == 12
    status = step(status, 90, children=children(job(ended="Failed")))
    status = step(status, 90, children=children(job(ended="Failed")))
    status = step(status, 90, children=children(stored_plan(1, **spec)))
    second: dict[str, Any] = {"children": children(job(2), stored_plan(2, **spec)), "pods": (pod(attempt=2),)}
    status = step(status, 90, **second)
    assert status["accounting"]["lostHours"] == 0
    resumed = report.model_copy(update={"step": 50, "resumed_step": 50})
    status = step(status, 91, **second, report=resumed)
    assert status["accounting"]["lostHours"] == 2  # 50 steps of 36 s on 4 GPUs


def test_quota_refusals_of_pods_are_told() -> None:
    refused = "pods is forbidden: exceeded quota"
    decision = decided(world(train(begun()), children=children(job()), refusals=(refused,)))
    assert message(decision) == refused
