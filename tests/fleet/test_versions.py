"""Versions of an adapter over several pods, under load."""

from __future__ import annotations

import base64
import time

from fleet.conftest import STORE, Fleet
from integration.harness import eventually, train


def three_pods(fleet: Fleet, *adapters: dict[str, object]) -> None:
    fleet.apply(*adapters, replicas=3)
    eventually(
        lambda: (
            fleet.status().get("readyReplicas") == 3
            and fleet.status()["adaptersSummary"] == f"{len(adapters)}/{len(adapters)}"
        ),
        lambda: str(fleet.status()),
        120,
    )


def test_a_new_version_is_rolled_out_under_load_and_a_bad_one_taken_back(fleet: Fleet) -> None:
    one, two = fleet.adapter("one"), fleet.adapter("two")
    bad = fleet.adapter("bad")
    path = fleet.store / "bad" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    three_pods(fleet, {"name": "a", "uri": one})
    with fleet.load("a") as answers:
        time.sleep(2)
        old = fleet.adapter_status("a")["digest"]
        begin = time.monotonic()
        fleet.apply({"name": "a", "uri": two}, replicas=3)
        found = fleet.wait_for("a", uri=two, state="Ready", readyPods=3, reason=None)
        live = time.monotonic()
        print(f"\nversion changed -> live on 3 pods, one after the other: {live - begin:.2f} s")
        assert found["digest"] != old
        time.sleep(2)
        switched = len(answers)
        fleet.apply({"name": "a", "uri": bad}, replicas=3)
        fleet.wait_for("a", state="Failed", reason="RolledBack", readyPods=3, uri=two)
        time.sleep(2)
    assert {answer.status for answer in answers} == {200}, [a for a in answers if a.status != 200][:3]
    assert {len(set(answer.said)) for answer in answers} == {1}, "no answer is a mix of two versions"
    said = [answer.said[0] for answer in answers]
    print(f"{len(answers)} streams, none refused")
    after = {answer.said[0] for answer in answers if answer.began > live}
    assert len(set(said)) == 2
    assert after == {said[switched]}, "after the switch only the new version answers, also while a bad one is tried"
    assert "truncated or damaged" in fleet.adapter_status("a")["message"]


def test_an_engine_and_a_pod_that_restart_get_their_adapters_back_without_the_operator(fleet: Fleet) -> None:
    three_pods(fleet, {"name": "a", "uri": fleet.adapter("one")}, {"name": "b", "uri": fleet.adapter("two")})
    fleet.stopped()
    victim = fleet.pods()[0]
    name = victim["metadata"]["name"]
    fleet.kubectl("exec", name, "-c", "engine", "--", "python3", "-c", "import os; os.kill(1, 9)", check=False)
    fleet.kubectl("exec", name, "-c", "engine", "--", "python3", "-c", "import os; os.kill(1, 15)", check=False)
    eventually(lambda: not fleet.roots(victim), lambda: "the engine still answers")
    up = eventually(
        lambda: time.monotonic() if fleet.roots(victim) or fleet.healthy(victim) else None, lambda: "down", 60
    )
    eventually(lambda: fleet.roots(victim).keys() == {"a", "b"}, lambda: str(fleet.roots(victim)), 2)
    print(f"\nengine up -> both adapters back: at most {time.monotonic() - up:.2f} s, with the operator down")
    fleet.kubectl("delete", "pod", name, "--wait=false")
    eventually(
        lambda: (
            len(fleet.pods()) == 3
            and name not in {pod["metadata"]["name"] for pod in fleet.pods()}
            and all(fleet.roots(pod).keys() == {"a", "b"} for pod in fleet.pods())
        ),
        lambda: str([pod["metadata"]["name"] for pod in fleet.pods()]),
        90,
    )


def test_a_rolling_update_of_the_pods_under_load_loses_no_request(fleet: Fleet) -> None:
    adapter = {"name": "a", "uri": fleet.adapter("one"), "required": "Always"}
    three_pods(fleet, adapter)
    before = {pod["metadata"]["name"] for pod in fleet.pods()}
    with fleet.load("a", streams=4, tokens=60) as answers:
        time.sleep(1)
        fleet.apply(adapter, replicas=3, engine={"maxModelLen": 256})
        eventually(
            lambda: (
                not before & {p["metadata"]["name"] for p in fleet.pods()}
                and fleet.status().get("readyReplicas") == 3
                and fleet.status().get("replicas") == 3
            ),
            lambda: str(fleet.status()),
            180,
        )
        time.sleep(2)
    print(f"\n{len(answers)} streams while all pods were replaced")
    assert {answer.status for answer in answers} == {200}, [a for a in answers if a.status != 200][:3]
    assert {len(answer.said) for answer in answers} == {60}, "none was cut short"


def test_an_adapter_on_one_of_three_pods_moves_when_that_pod_goes(fleet: Fleet) -> None:
    everywhere, once = (
        {"name": "all", "uri": fleet.adapter("one")},
        {"name": "One", "uri": fleet.adapter("two"), "replicas": 1},
    )
    three_pods(fleet, everywhere, once)
    having = [pod for pod in fleet.pods() if "One" in fleet.roots(pod)]
    assert len(having) == 1
    assert all("all" in fleet.roots(pod) for pod in fleet.pods())
    found = fleet.wait_for("One", desiredPods=1, readyPods=1)
    service = found["url"].removeprefix("http://").split(".")[0]

    def says() -> int:
        return fleet.ask("One", service).status

    eventually(lambda: says() == 200, lambda: str(says()), 10)
    fleet.kubectl("delete", "pod", having[0]["metadata"]["name"], "--wait=false")
    gone = having[0]["metadata"]["uid"]
    eventually(
        lambda: [p["metadata"]["uid"] != gone for p in fleet.pods() if "One" in fleet.roots(p)] == [True],
        lambda: "it did not move",
        60,
    )
    eventually(lambda: says() == 200, lambda: str(says()), 30)


def test_what_jobs_with_a_label_make_is_served_with_no_further_apply(fleet: Fleet) -> None:
    (fleet.store / "adapters").mkdir()
    fleet.adapter("adapters/0123")
    fleet.apply(adapterSelector={"matchLabels": {"serve": "chat"}})
    fleet.wait("Ready")
    job = train("support-bot")
    job["metadata"]["labels"] = {"serve": "chat"}
    fleet.kubectl.apply(job, train("not-chosen"))
    done = fleet.kubectl.wait("ftj", "support-bot", "Completed")
    fleet.wait_for("support-bot", state="Ready", seconds=15)
    assert done["status"]["artifact"]["uri"] == f"{STORE}/adapters/0123"
    fleet.kubectl.wait("ftj", "not-chosen", "Completed")
    assert [a["name"] for a in fleet.status()["adapters"]] == ["support-bot"]
    assert fleet.ask("support-bot").status == 200


def test_a_new_admin_token_disturbs_nobody(fleet: Fleet) -> None:
    three_pods(fleet, {"name": "a", "uri": fleet.adapter("one")})
    token = fleet.kubectl.get("secret", "chat-admin")["data"]["token"]
    fleet.kubectl("annotate", "--overwrite", "secret", "chat-admin", "tunesmith.io/rotated-at=2020-01-01T00:00:00Z")
    fleet.kubectl("annotate", "mdep", "chat", "poke=1")
    eventually(lambda: fleet.kubectl.get("secret", "chat-admin")["data"]["token"] != token, lambda: "not rotated", 30)
    data = fleet.kubectl.get("secret", "chat-admin")["data"]
    assert data["previous"] == token
    assert len(base64.b64decode(data["token"])) > 20
    for number in range(4):  # before, and while, the pods learn of it
        fleet.apply(
            {"name": "a", "uri": fleet.adapter("one")}, {"name": f"b{number}", "uri": fleet.adapter("two")}, replicas=3
        )
        fleet.wait_for(f"b{number}", state="Ready", readyPods=3, seconds=15)


def test_a_real_autoscaler_scales_the_resource_and_nobody_writes_against_it(fleet: Fleet) -> None:
    fleet.apply(autoscaling={"minReplicas": 2, "maxReplicas": 3, "queueLength": 4})
    eventually(lambda: fleet.status().get("readyReplicas") == 2, lambda: str(fleet.status()), 90)
    assert fleet.kubectl.get("mdep", "chat")["spec"]["replicas"] == 2
    conditions = {c["type"]: c for c in fleet.kubectl.get("hpa", "chat")["status"]["conditions"]}
    assert conditions["AbleToScale"]["status"] == "True"
    fleet.apply(replicas=1)
    eventually(
        lambda: not fleet.kubectl.names("hpa") and fleet.status().get("replicas") == 1, lambda: str(fleet.status()), 60
    )
    memory = fleet.status()["memory"]
    assert memory["weightsBytes"] > 0
    fits = next(c for c in fleet.status()["conditions"] if c["type"] == "Fits")
    assert (fits["status"], fits["reason"]) == ("False", "TooLarge"), (
        "the limit of these pods is below vLLM's own share"
    )


def test_two_hundred_loads_and_unloads_while_agents_are_killed(fleet: Fleet) -> None:
    uris = [fleet.adapter(f"v{n}") for n in range(4)]
    three_pods(fleet, {"name": "kept", "uri": uris[0]})
    with fleet.load("kept", streams=3, tokens=5) as answers:
        for turn in range(19):
            names = {f"a{n}": uris[(turn + n) % 4] for n in range(4 if turn % 2 else 0)}
            fleet.apply(
                {"name": "kept", "uri": uris[0]}, *({"name": n, "uri": u} for n, u in names.items()), replicas=3
            )
            if turn in (5, 11):
                victim = fleet.pods()[turn % 3]["metadata"]["name"]
                script = "import os; os.kill(1, 9); os.kill(1, 15)"
                fleet.kubectl("exec", victim, "-c", "agent", "--", "python3", "-c", script, check=False)
            wanted = {"kept", *names}
            eventually(
                lambda: all(fleet.roots(pod).keys() == wanted for pod in fleet.pods()),  # noqa: B023
                lambda: str([fleet.roots(pod).keys() for pod in fleet.pods()]),
                40,
            )
    print(f"\n{9 * 4 * 3} loads and as many unloads on 3 pods; {len(answers)} streams")
    assert {answer.status for answer in answers} <= {200, 503, 0}
    assert sum(answer.status == 200 for answer in answers) > 0.97 * len(answers)
