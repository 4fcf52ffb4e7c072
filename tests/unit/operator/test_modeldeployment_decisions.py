"""What is decided for ModelDeployments, by table."""

from __future__ import annotations

import json
from typing import Any

import pytest
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


@pytest.mark.parametrize("quantization", [None, "compressed-tensors pack-quantized"])
def test_an_engine_that_keeps_ending_says_why_and_of_a_quantised_model_where_to_look(quantization: str | None) -> None:
    words = "ValueError: Failed to find a kernel"
    status = {
        "name": "engine",
        "restartCount": 2,
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
        "lastState": {"terminated": {"exitCode": 1, "message": words}},
    }
    footprint = {"weightsBytes": 1, "kvBytesPerToken": 1, "adaptersBytes": 1, "maxModelLen": 512}
    agent = AgentStatus.model_validate(
        {"revision": 1, "engine": "Starting", "ready": False, "footprint": {**footprint, "quantization": quantization}}
    )
    decision = decided(world(serve(), pods=(pod("p0", containerStatuses=[status]),), agents={"p0": agent}))
    ready = next(c for c in decision.status.body()["conditions"] if c["type"] == "Ready")
    assert (ready["status"], ready["reason"]) == ("False", "Starting")
    assert f"container engine: CrashLoopBackOff: back-off 10s (exit code 1: {words})" in ready["message"]
    assert ("The model is quantised (compressed-tensors pack-quantized)" in ready["message"]) == bool(quantization)


def test_a_file_for_llama_cpp_is_refused() -> None:
    made = finished("MergeJob", "m", "models")
    made["spec"] = {"quantization": {"method": "GGUF"}}
    decision = decided(world(serve(model={"mergeJobRef": {"name": "m"}}), references={("MergeJob", "m"): made}))
    ready = next(c for c in decision.status.body()["conditions"] if c["type"] == "Ready")
    assert ready["reason"] == "ConfigError"
    assert ready["message"].startswith("spec.model: MergeJob m made a GGUF file, which is for llama.cpp and Ollama")


def test_an_adapter_whose_job_was_deleted_is_served_on() -> None:
    first = decided(world(serve(adapters=[LORA1]), references=A_DONE))
    config = mine("ConfigMap", "x-adapters", data=next(o for o in first.apply if o["kind"] == "ConfigMap")["data"])
    gone = {("FineTuneJob", "a"): None}
    decision = decided(world(serve(adapters=[LORA1]), references=gone, children=children(config)))
    assert [a["uri"] for a in state(decision)["adapters"]] == ["pvc://store/adapters/abc"]
    message = decision.status.body()["adapters"][0]["message"]
    assert message == "FineTuneJob a does not exist yet; what it made before is served"


@pytest.mark.parametrize("data", [None, {}, {"state.json": "{"}, {"state.json": "[]"}, {"state.json": "{}"}])
def test_a_configmap_that_somebody_spoilt_is_written_anew(data: dict[str, str] | None) -> None:
    whole = decided(world(serve(gateway={}, adapters=[LORA2])))
    spoilt = {"data": data} if data is not None else {}
    agents = {"p0": AgentStatus(revision=10**12, engine="Ready", ready=True)}
    live = children(mine("ConfigMap", "x-adapters", **spoilt))
    again = decided(world(serve(gateway={}, adapters=[LORA2]), children=live, agents=agents, pods=(pod(),)))
    assert state(again)["adapters"] == state(whole)["adapters"]
    assert state(again)["revision"] > 10**12, "or the agents would not take it"


@pytest.mark.parametrize("routes", ["{", "[]", "{}"])
def test_routes_that_somebody_spoilt_are_written_anew(routes: str) -> None:
    def told(decision: Decision) -> dict[str, str]:
        data: dict[str, str] = next(o for o in decision.apply if o["kind"] == "ConfigMap")["data"]
        return data

    first = told(decided(world(serve(gateway={}))))
    live = children(mine("ConfigMap", "x-adapters", data={**first, "routes.json": routes}))
    again = told(decided(world(serve(gateway={}), children=live)))
    assert json.loads(again["routes.json"])["modelName"] == "base"


@pytest.mark.parametrize("data", [None, {}, {"other": "eA=="}])
def test_an_admin_secret_without_its_token_gets_one(data: dict[str, str] | None) -> None:
    secret = mine("Secret", "x-admin", **({"data": data} if data is not None else {}))
    decision = decided(world(serve(), children=children(secret)))
    made = next(o for o in decision.apply if o["kind"] == "Secret")
    assert made["data"].keys() == {"token"}
    whole = mine("Secret", "x-admin", data={"token": "eA=="})
    assert not [o for o in decided(world(serve(), children=children(whole))).apply if o["kind"] == "Secret"]
