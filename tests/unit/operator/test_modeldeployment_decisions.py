"""What is decided for ModelDeployments, by table."""

from __future__ import annotations

import json
from typing import Any

from tunesmith.decide.modeldeployment import decide
from tunesmith.decide.world import Decision, World
from tunesmith.serving.contract import AgentStatus
from tunesmith.settings import Settings
from unit.operator.builders import children, finished, mine, pod, serve, world

SETTINGS = Settings()
LORA1 = {"name": "lora1", "fineTuneJobRef": {"name": "a"}}
LORA2 = {"name": "lora2", "uri": "hf://org/adapter@main", "secretRef": {"name": "hub"}}
A_DONE = {("FineTuneJob", "a"): finished("FineTuneJob", "a")}
A_RUNS = {("FineTuneJob", "a"): finished("FineTuneJob", "a", succeeded="Unknown")}


def decided(world: World) -> Decision:
    decision = decide(world, SETTINGS)
    assert decision is not None
    return decision


def state(decision: Decision) -> dict[str, Any]:
    config = next(o for o in decision.apply if o["kind"] == "ConfigMap")
    result: dict[str, Any] = json.loads(config["data"]["state.json"])
    return result


def conditions(decision: Decision) -> dict[str, tuple[str, str]]:
    return {c["type"]: (c["status"], c["reason"]) for c in decision.status.body()["conditions"]}


def deployment(decision: Decision) -> dict[str, Any]:
    return next(o for o in decision.apply if o["kind"] == "Deployment")


def test_an_adapter_that_is_not_trained_yet_does_not_keep_the_base_from_being_served() -> None:
    decision = decided(world(serve(adapters=[LORA1]), references=A_RUNS))
    assert state(decision)["adapters"] == []
    status = decision.status.body()["adapters"][0]
    assert {key: value for key, value in status.items() if value} == {
        "name": "lora1",
        "state": "Waiting",
        "reason": "WaitingForReference",
        "message": "FineTuneJob a has not finished yet",
    }


def test_adding_an_adapter_of_the_store_does_not_change_the_pods() -> None:
    before = decided(world(serve(adapters=[]), store_exists=True))
    settings_store = world(
        serve(adapters=[{"name": "l", "uri": "pvc://tunesmith-store/adapters/x"}]), store_exists=True
    )
    assert deployment(before) == deployment(decided(settings_store))


def test_the_revision_stays_while_nothing_changes_and_grows_past_every_agent() -> None:
    first = decided(world(serve()))
    config = mine("ConfigMap", "x-adapters", data=next(o for o in first.apply if o["kind"] == "ConfigMap")["data"])
    same = decided(world(serve(), children=children(config)))
    assert state(same) == state(first)
    agents = {"p0": AgentStatus(revision=10**12, engine="Ready", ready=True)}
    changed = decided(world(serve(adapters=[LORA2]), children=children(config), agents=agents, pods=(pod(),)))
    assert state(changed)["revision"] == 10**12 + 1


def test_only_agents_that_are_behind_are_told() -> None:
    first = decided(world(serve()))
    revision = state(first)["revision"]
    config = mine("ConfigMap", "x-adapters", data=next(o for o in first.apply if o["kind"] == "ConfigMap")["data"])
    pods = (pod("old", podIP="10.0.0.1"), pod("new", podIP="10.0.0.2"))
    agents = {
        "old": AgentStatus(revision=revision - 1, engine="Ready", ready=True),
        "new": AgentStatus(revision=revision, engine="Ready", ready=True),
    }
    decision = decided(world(serve(), children=children(config), pods=pods, agents=agents))
    assert [address for address, _ in decision.push] == ["10.0.0.1"]


def test_an_adapter_is_ready_when_every_pod_serves_its_newest_version() -> None:
    uri = "pvc://store/adapters/abc"

    def agent(state: str, of: str = uri, message: str | None = None) -> AgentStatus:
        adapter = {"name": "lora1", "uri": of, "state": state, "digest": "abc", "message": message}
        return AgentStatus.model_validate({"revision": 1, "engine": "Ready", "ready": True, "adapters": [adapter]})

    pods = (pod("p0"), pod("p1"))
    first = decided(world(serve(adapters=[LORA1]), references=A_DONE))
    config = mine("ConfigMap", "x-adapters", data=next(o for o in first.apply if o["kind"] == "ConfigMap")["data"])
    table: list[tuple[dict[str, AgentStatus], str, int]] = [
        ({}, "Loading", 0),
        ({"p0": agent("Ready")}, "Loading", 1),
        ({"p0": agent("Ready"), "p1": agent("Loading")}, "Loading", 1),
        ({"p0": agent("Ready"), "p1": agent("Ready", of="pvc://store/adapters/older")}, "Loading", 1),
        ({"p0": agent("Ready"), "p1": agent("Failed", message="rank 512 is too large")}, "Failed", 1),
        ({"p0": agent("Ready"), "p1": agent("Ready")}, "Ready", 2),
    ]
    for agents, wanted, ready in table:
        observed = world(
            serve(adapters=[LORA1], replicas=2), references=A_DONE, pods=pods, agents=agents, children=children(config)
        )
        status = decided(observed).status.body()["adapters"][0]
        assert (status["state"], status["readyPods"]) == (wanted, ready)
        if wanted == "Failed":
            assert status["message"] == "pod p1: rank 512 is too large"


def test_ready_speaks_of_pods_and_adapters_ready_of_adapters() -> None:
    live = mine("Deployment", "x-engine", status={"replicas": 1, "readyReplicas": 1, "updatedReplicas": 1})
    decision = decided(world(serve(adapters=[LORA1]), references=A_RUNS, children=children(live)))
    assert conditions(decision) == {
        "Ready": ("True", "Ready"),
        "AdaptersReady": ("False", "WaitingForReference"),
        "Sized": ("True", "Sized"),
    }


def test_a_rollout_is_said_while_the_old_pods_serve_on() -> None:
    live = mine("Deployment", "x-engine", status={"replicas": 2, "readyReplicas": 1, "updatedReplicas": 1})
    assert conditions(decided(world(serve(), children=children(live))))["Ready"] == ("True", "Updating")


def test_credentials_reach_only_the_container_that_fetches() -> None:
    pod_spec = deployment(decided(world(serve(adapters=[LORA2]))))["spec"]["template"]["spec"]
    engine = json.dumps(pod_spec["containers"])
    agent = json.dumps(pod_spec["initContainers"])
    assert "secret-hub" in agent
    assert "secret-hub" not in engine


def test_a_single_pod_gets_no_disruption_budget_and_several_do() -> None:
    def budgets(replicas: int) -> list[str]:
        return [o["kind"] for o in decided(world(serve(replicas=replicas))).apply if o["kind"] == "PodDisruptionBudget"]

    assert budgets(1) == []
    assert budgets(2) == ["PodDisruptionBudget"]
    stale = mine("PodDisruptionBudget", "x")
    assert decided(world(serve(), children=children(stale))).delete == (stale,)


def test_every_container_is_restricted() -> None:
    template = deployment(decided(world(serve(adapters=[LORA2]))))["spec"]["template"]["spec"]
    for container in [*template["containers"], *template["initContainers"]]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert template["securityContext"]["runAsNonRoot"] is True
    assert template["automountServiceAccountToken"] is False
    assert template["enableServiceLinks"] is False


def test_a_model_that_is_yet_to_be_written_is_waited_for() -> None:
    agent = AgentStatus(revision=1, engine="Starting", ready=False, waiting="store/base holds no config.json yet")
    decision = decided(world(serve(), pods=(pod("p0"),), agents={"p0": agent}))
    assert conditions(decision)["Ready"] == ("False", "WaitingForInput")


def test_an_adapter_whose_job_was_deleted_is_served_on() -> None:
    first = decided(world(serve(adapters=[LORA1]), references=A_DONE))
    config = mine("ConfigMap", "x-adapters", data=next(o for o in first.apply if o["kind"] == "ConfigMap")["data"])
    gone = {("FineTuneJob", "a"): None}
    decision = decided(world(serve(adapters=[LORA1]), references=gone, children=children(config)))
    assert [a["uri"] for a in state(decision)["adapters"]] == ["pvc://store/adapters/abc"]
    message = decision.status.body()["adapters"][0]["message"]
    assert message == "FineTuneJob a does not exist yet; what it made before is served"
