"""The gateway between clients and pods, under load: canaries, rollouts, and no pod at all."""

from __future__ import annotations

import threading
import time
from typing import Any

from fleet.conftest import Answer, Fleet
from integration.harness import eventually

TOKENS = 20


def through_gateway(fleet: Fleet, *adapters: dict[str, Any], replicas: int = 2, **spec: Any) -> None:
    """Apply, and wait until the pods serve and clients get to gateways."""
    fleet.apply(*adapters, replicas=replicas, **{"gateway": {}, **spec})
    eventually(
        lambda: (
            fleet.status().get("gateway", {}).get("readyReplicas") == 2
            and fleet.status().get("readyReplicas") == replicas
            and fleet.status()["adaptersSummary"] == f"{len(adapters)}/{len(adapters)}"
            and fleet.kubectl.get("service", "chat")["spec"]["selector"]["tunesmith.io/role"] == "gateway"
        ),
        lambda: str(fleet.status()),
        120,
    )


def canary(fleet: Fleet) -> dict[str, Any]:
    return dict(fleet.adapter_status("a").get("canary", {}))


def ended(fleet: Fleet, state: str) -> dict[str, Any]:
    return eventually(
        lambda: found if (found := canary(fleet)).get("state") == state else None, lambda: str(fleet.status()), 90
    )


def lost(answers: list[Answer]) -> list[Answer]:
    return [one for one in answers if one.status != 200 or len(one.said) != TOKENS]


def test_a_canary_under_load_loses_no_request_and_a_bad_version_is_rolled_back(fleet: Fleet) -> None:
    one, two = fleet.adapter("one"), fleet.adapter("two")
    bad = fleet.adapter("bad", revision="fails")
    through_gateway(fleet, {"name": "a", "uri": one})
    steps = {"percents": [20, 50], "windowSeconds": 3, "minRequests": 10}
    with fleet.load("a", streams=4, tokens=TOKENS) as answers:
        time.sleep(2)
        begin = len(answers)
        fleet.apply({"name": "a", "uri": one, "canary": {"uri": two, **steps}}, replicas=2, gateway={})
        ended(fleet, "Promoted")
        over = time.monotonic()
        time.sleep(2)
        fleet.apply({"name": "a", "uri": two}, replicas=2, gateway={})
        fleet.wait_for("a", uri=two, state="Ready", readyPods=2)
        time.sleep(1)
    assert not lost(answers)
    assert all(len(set(answer.said)) == 1 for answer in answers), "no answer is a mix of two versions"
    [old] = {answer.said[0] for answer in answers[:begin]}
    tried = [answer for answer in answers[begin:] if answer.began < over]
    assert {old} < {answer.said[0] for answer in tried}, "both versions answered"
    [new] = {answer.said[0] for answer in answers if answer.began > over}
    assert new != old
    print(f"\n{len(answers)} streams, none lost; {len(tried)} of them while a new version took over in two steps")

    with fleet.load("a", streams=4, tokens=TOKENS) as answers:
        trial = {"uri": bad, "percents": [50], "minRequests": 5}
        fleet.apply({"name": "a", "uri": two, "canary": trial}, replicas=2, gateway={})
        found = ended(fleet, "RolledBack")
        over = time.monotonic()
        time.sleep(2)
    assert found["reason"] == "TooManyErrors"
    failed = lost(answers)
    assert {one.status for one in failed} == {500}
    assert not [one for one in failed if one.began > over], "what was taken back gets no request any more"
    assert {one.said[0] for one in answers if one.status == 200} == {new}
    assert fleet.adapter_status("a")["state"] == "Ready"
    assert all(fleet.roots(pod).keys() == {"a"} for pod in engines(fleet))
    print(f"{len(failed)} of {len(answers)} streams failed before the bad version was taken back: {found['message']}")


def test_engines_and_gateways_are_replaced_under_load_and_no_request_is_lost(fleet: Fleet) -> None:
    adapter = {"name": "a", "uri": fleet.adapter("one"), "required": "Always"}
    through_gateway(fleet, adapter)
    before = {pod["metadata"]["name"] for pod in fleet.pods()}
    assert len(before) == 4
    with fleet.load("a", streams=4, tokens=TOKENS) as answers:
        time.sleep(1)
        resources = {"requests": {"cpu": "20m"}}
        fleet.apply(adapter, replicas=2, engine={"maxModelLen": 256}, gateway={"resources": resources})
        eventually(
            lambda: not before & (now := {p["metadata"]["name"] for p in fleet.pods()}) and len(now) == 4,
            lambda: str([p["metadata"]["name"] for p in fleet.pods()]),
            180,
        )
        time.sleep(2)
    print(f"\n{len(answers)} streams while all engines and gateways were replaced")
    assert not lost(answers)


def test_pods_go_when_nobody_asks_and_come_back_for_requests_that_wait(fleet: Fleet) -> None:
    adapter = {"name": "a", "uri": fleet.adapter("one")}
    through_gateway(fleet, adapter, replicas=1, gateway={"idleSeconds": 10})
    fleet.wait("ScaledToZero", seconds=60)
    eventually(lambda: not engines(fleet), lambda: str(fleet.pods()), 60)
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda: answers.append(fleet.ask("a"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    eventually(lambda: fleet.status()["gateway"]["held"] == 6 or answers, lambda: str(fleet.status()), 20)
    for thread in threads:
        thread.join()
    assert [one.status for one in answers] == [200] * 6
    assert {one.said for one in answers} == {answers[0].said}
    waited = max(one.ended - one.began for one in answers)
    fleet.wait("Ready")
    print(f"\nfrom no pod to an answer: {waited:.1f} s")


def engines(fleet: Fleet) -> list[dict[str, Any]]:
    return [pod for pod in fleet.pods() if pod["metadata"]["labels"]["tunesmith.io/role"] == "engine"]
