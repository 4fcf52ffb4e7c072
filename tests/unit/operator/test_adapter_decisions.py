"""Which pod should serve which version of an adapter, step by step."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from typing import Any

import pytest
from tunesmith.api.modeldeployment import Engine
from tunesmith.decide.adapters import Pod, placed, rolled
from tunesmith.decide.modeldeployment import decide
from tunesmith.decide.sizing import sizes
from tunesmith.decide.world import Decision, World
from tunesmith.serving.contract import AgentStatus, DesiredAdapter, ObservedAdapter, State, weight
from tunesmith.settings import Settings
from unit.operator.builders import NOW, children, finished, mine, pod, serve, world

SETTINGS = Settings()
OLD, NEW = "pvc://store/adapters/1", "pvc://store/adapters/2"
UIDS = sorted(("u0", "u1", "u2", "u3"), key=lambda uid: weight("a", uid))


def desired(uri: str, **more: Any) -> DesiredAdapter:
    return DesiredAdapter(name="a", uri=uri, path=uri.replace("pvc://", "/mnt/claims/"), **more)


def observed(uri: str, state: Any = "Ready", **more: Any) -> dict[str, ObservedAdapter]:
    return {"a": ObservedAdapter(name="a", uri=uri, state=state, digest="1", **more)}


def fleet(*uris: str | dict[str, ObservedAdapter]) -> list[Pod]:
    """Pods in the order of their turn, each with what it serves."""
    given = [observed(uri) if isinstance(uri, str) else uri for uri in uris]
    return [Pod(f"pod-{uid}", uid, adapters=one) for uid, one in zip(UIDS, given, strict=False)]


def follow(state: DesiredAdapter, uid: str) -> str:
    mine = state.of(uid)
    assert mine
    return mine.uri


def test_a_new_version_takes_over_pod_after_pod() -> None:
    pods, state = fleet(OLD, OLD, OLD), desired(OLD)
    history = []
    for _ in range(10):
        state = rolled(desired(NEW), state, pods, 1, 3, 64)
        served = [follow(state, one.uid) for one in pods]
        history.append(served.count(NEW))
        changed = [one for one, uri in zip(pods, served, strict=True) if not one.serves("a", uri)]
        assert len(changed) <= 1, "no more than one at a time"
        pods = fleet(*served)
    assert history[:4] == [1, 2, 3, 3]
    assert state == desired(NEW)


@pytest.mark.parametrize(("step", "first"), [(1, 1), (2, 2), (9, 3)])
def test_as_many_pods_switch_at_a_time_as_the_spec_allows(step: int, first: int) -> None:
    state = rolled(desired(NEW), desired(OLD), fleet(OLD, OLD, OLD), step, 3, 64)
    assert [follow(state, uid) for uid in UIDS[:3]].count(NEW) == first


def test_no_pod_follows_while_one_has_not_switched_yet() -> None:
    state = rolled(desired(NEW), desired(OLD), fleet(OLD, OLD, OLD), 1, 3, 64)
    for first in (observed(OLD), observed(NEW, "Loading"), observed(NEW, "Failed"), {}):
        assert rolled(desired(NEW), state, fleet(first, OLD, OLD), 1, 3, 64) == state


def test_a_pod_that_cannot_be_asked_holds_the_rollout() -> None:
    state = rolled(desired(NEW), desired(OLD), fleet({}, {}, {}), 1, 3, 64)
    assert state.previous is not None
    assert rolled(desired(NEW), state, fleet({}, {}, {}), 1, 3, 64) == state


def test_pods_whose_engine_is_down_get_the_new_version_when_it_is_up() -> None:
    down = [Pod("p", uid, up=False) for uid in UIDS]
    assert rolled(desired(NEW), desired(OLD), down, 1, 3, 64) == desired(NEW)


def refusing(**more: Any) -> dict[str, ObservedAdapter]:
    return observed(NEW, "Failed", permanent=True, reason="SmokeFailed", message="says nothing", **more)


def test_a_version_that_a_pod_refuses_is_taken_back_until_the_spec_changes() -> None:
    state = rolled(desired(NEW), desired(OLD), fleet(OLD, OLD), 1, 3, 64)
    back = rolled(desired(NEW), state, fleet(refusing(), OLD), 1, 3, 64)
    assert {follow(back, uid) for uid in UIDS} == {OLD}
    assert back.rejected
    assert (back.rejected.reason, back.rejected.message) == ("SmokeFailed", f"pod pod-{UIDS[0]}: says nothing")
    again = rolled(desired(NEW), back, fleet(OLD, OLD), 1, 3, 64)
    assert again == back
    assert follow(rolled(desired(NEW), back, fleet(OLD, OLD), 1, 4, 64), UIDS[0]) == NEW, "a new spec is a new try"
    assert rolled(desired(OLD), back, fleet(OLD, OLD), 1, 4, 64) == desired(OLD)


def test_a_first_version_has_nothing_to_go_back_to() -> None:
    assert rolled(desired(NEW), desired(NEW), fleet(refusing()), 1, 3, 64) == desired(NEW)


def test_a_rank_that_the_next_pods_can_serve_is_no_reason_to_go_back() -> None:
    state = rolled(desired(NEW), desired(OLD), fleet(OLD, OLD), 1, 3, 128)
    assert rolled(desired(NEW), state, fleet(refusing(rank=128), OLD), 1, 3, 128).rejected is None
    back = rolled(desired(NEW), state, fleet(refusing(rank=128), OLD), 1, 3, 64)
    assert back.rejected
    assert rolled(desired(NEW), back, fleet(OLD, OLD), 1, 3, 128).rejected is None


def test_a_rollout_that_is_overtaken_begins_anew_from_what_was_good() -> None:
    state = rolled(desired(NEW), desired(OLD), fleet(OLD, OLD), 1, 3, 64)
    newest = "pvc://store/adapters/3"
    over = rolled(desired(newest), state, fleet(NEW, OLD), 1, 4, 64)
    assert [follow(over, uid) for uid in UIDS[:2]] == [newest, OLD]
    assert rolled(desired(OLD), state, fleet(NEW, OLD), 1, 4, 64) == desired(OLD)


def test_an_adapter_is_placed_on_as_many_pods_as_wanted_and_moves_as_little_as_can_be() -> None:
    one = desired(OLD)

    def chosen(bound: str | None, uids: list[str]) -> set[str]:
        return {uid for uid in uids if bound is None or weight("a", uid) <= bound}

    uids = [f"u{n}" for n in range(20)]
    pods = [Pod(uid, uid) for uid in uids]
    assert placed(one, None, pods) is None
    bound = placed(one, 3, pods)
    before = chosen(bound, uids)
    assert len(before) == 3
    victim = sorted(before)[0]
    after = chosen(placed(one, 3, [p for p in pods if p.uid != victim]), [u for u in uids if u != victim])
    assert len(after) == 3
    assert len(after & before) == 2, "the others stay where they are"
    assert len(chosen(placed(one, 30, pods), uids)) == 20


def test_a_pod_that_is_to_serve_no_more_goes_on_until_another_does() -> None:
    first, second = UIDS[:2]  # the first has the lower weight, and comes later
    alone = [Pod("p1", second, adapters=observed(OLD))]
    assert placed(desired(OLD), 1, alone) == weight("a", second)
    both = [*alone, Pod("p0", first)]
    bound = placed(desired(OLD), 1, both)
    assert bound == weight("a", second), "both serve it now"
    taken = [*alone, Pod("p0", first, adapters=observed(OLD))]
    assert placed(desired(OLD), 1, taken) == weight("a", first)


def decided(world: World) -> Decision:
    decision = decide(world, SETTINGS)
    assert decision is not None
    return decision


def stored(decision: Decision) -> dict[str, Any]:
    data = next(o for o in decision.apply if o["kind"] == "ConfigMap")["data"]
    return mine("ConfigMap", "x-adapters", data=data)


def state(decision: Decision) -> State:
    return State.model_validate_json(stored(decision)["data"]["state.json"])


def agent(uid: str, *adapters: dict[str, Any], revision: int = 1) -> AgentStatus:
    body = {"revision": revision, "podUid": uid, "engine": "Ready", "ready": True, "adapters": list(adapters)}
    return AgentStatus.model_validate(body)


def status_of(decision: Decision, name: str = "a") -> dict[str, Any]:
    return next(a for a in decision.status.body()["adapters"] if a["name"] == name)


def test_the_status_counts_pods_and_tells_where_they_differ() -> None:
    resource = serve(adapters=[{"name": "a", "uri": OLD}], replicas=4)
    first = decided(world(resource))
    pods = tuple(pod(f"p{n}") for n in range(4))
    pods[2]["status"]["containerStatuses"] = [{"name": "engine", "restartCount": 5}]
    failed = {"name": "a", "uri": OLD, "state": "Failed", "reason": "FetchFailed", "message": "no route", "attempts": 3}
    agents = {
        "p0": agent("u-p0", {"name": "a", "uri": OLD, "state": "Ready", "digest": "1"}),
        "p1": agent("u-another", {"name": "a", "uri": OLD, "state": "Ready", "digest": "1"}),
        "p2": agent("u-p2", {**failed, "nextRetry": "2026-01-02T03:05:00Z"}),
    }
    found = status_of(decided(world(resource, pods=pods, agents=agents, children=children(stored(first)))))
    assert (found["desiredPods"], found["readyPods"], found["failedPods"]) == (4, 1, 1)
    assert (found["state"], found["reason"], found["attempts"]) == ("Failed", "FetchFailed", 3)
    assert found["nextRetry"] == "2026-01-02T03:05:00Z"
    assert found["digest"] == "sha256:1"
    assert [(p["pod"], p["state"], p["reason"]) for p in found["pods"]] == [
        ("p1", "Loading", "WaitingForEngine"),  # another pod's agent answers under its address
        ("p2", "Failed", "FetchFailed"),
        ("p3", "Loading", "WaitingForEngine"),
    ]
    assert found["pods"][1]["restarts"] == 5


def test_a_rollback_is_said() -> None:
    pods = (pod("p0"),)
    old = decided(world(serve(adapters=[{"name": "a", "uri": OLD}]), pods=pods))
    resource = serve(adapters=[{"name": "a", "uri": NEW}])
    serving = {"p0": agent("u-p0", {"name": "a", "uri": OLD, "state": "Ready", "digest": "1"})}
    rolling = decided(world(resource, pods=pods, agents=serving, children=children(stored(old))))
    assert status_of(rolling)["reason"] == "RollingOut"
    assert rolling.again == 0.3
    refusal = {"name": "a", "uri": NEW, "state": "Failed", "permanent": True, "reason": "CheckFailed", "message": "no"}
    refused = {"p0": agent("u-p0", {**refusal, "digest": "1"})}
    back = decided(world(resource, pods=pods, agents=refused, children=children(stored(rolling))))
    assert state(back).adapters[0].uri == OLD
    again = decided(world(resource, pods=pods, agents=serving, children=children(stored(back))))
    found = status_of(again)
    assert (found["state"], found["reason"], found["readyPods"]) == ("Failed", "RolledBack", 1)
    assert f"{NEW} was taken back: pod p0: no; {OLD} is served on" in found["message"]
    assert state(again) == state(back), "nothing more is written"


def test_jobs_with_a_label_are_served_under_their_names_when_they_succeeded() -> None:
    jobs = (
        finished("FineTuneJob", "b"),
        finished("FineTuneJob", "a"),
        finished("FineTuneJob", "runs", succeeded="Unknown"),
        finished("FineTuneJob", "failed", succeeded="False"),
        finished("FineTuneJob", "whole", artifact="models"),
        finished("FineTuneJob", "base"),
    )
    references = {("FineTuneJob", str(job["metadata"]["name"])): job for job in jobs}
    resource = serve(adapterSelector={"matchLabels": {"team": "x"}}, adapters=[{"name": "b", "uri": OLD}])
    decision = decided(world(resource, selected=jobs, references=references))
    served = {a.name: a.uri for a in state(decision).adapters}
    assert served == {"b": OLD, "a": "pvc://store/adapters/abc"}, "what the spec itself names comes first"
    assert [a["name"] for a in decision.status.body()["adapters"]] == ["b", "a"]


def test_an_adapter_on_some_pods_has_a_service_of_its_own() -> None:
    pods = tuple(pod(f"p{n}", conditions=[{"type": "Ready", "status": "True"}]) for n in range(3))
    resource = serve(adapters=[{"name": "My.Adapter", "uri": OLD, "replicas": 1}], replicas=3)
    first = decided(world(resource, pods=pods))
    chosen = [p for p in pods if state(first).adapters[0].of(p["metadata"]["uid"])]
    assert len(chosen) == 1
    name = chosen[0]["metadata"]["name"]
    serving = {"name": "My.Adapter", "uri": OLD, "state": "Ready", "digest": "1"}
    agents = {name: agent(f"u-{name}", serving)}
    decision = decided(world(resource, pods=pods, agents=agents, children=children(stored(first))))
    slices = [o for o in decision.apply if o["kind"] == "EndpointSlice"]
    assert [e["targetRef"]["name"] for e in slices[0]["endpoints"]] == [name]
    service = next(o for o in decision.apply if o["kind"] == "Service" and "selector" not in o["spec"])
    assert service["metadata"]["name"] == slices[0]["metadata"]["labels"]["kubernetes.io/service-name"]
    assert status_of(decision, "My.Adapter")["url"] == f"http://{service['metadata']['name']}.ns.svc/v1"
    gone = decided(world(serve(), children=children(mine("Service", "x-y", labels={"tunesmith.io/adapter": "y"}))))
    assert [o["metadata"]["name"] for o in gone.delete] == ["x-y"]


def test_the_admin_token_is_made_once_and_made_anew_when_it_is_old() -> None:
    first = decided(world(serve()))
    [secret] = [o for o in first.create if o["kind"] == "Secret"]
    live = mine("Secret", "x-admin", data=secret["data"])
    live["metadata"]["annotations"] = secret["metadata"]["annotations"]
    later = decided(world(serve(), children=children(live), now=NOW + timedelta(days=29)))
    assert not [o for o in (*later.create, *later.apply) if o["kind"] == "Secret"]
    old = decided(world(serve(), children=children(live), now=NOW + timedelta(days=31)))
    [rotated] = [o for o in old.apply if o["kind"] == "Secret"]
    assert base64.b64decode(rotated["data"]["previous"]).decode() == "secret-token"
    assert "token" in rotated["data"]


def args(decision: Decision) -> list[str]:
    deployment = next(o for o in decision.apply if o["kind"] == "Deployment")
    return list(deployment["spec"]["template"]["spec"]["containers"][0]["args"])


def sized(decision: Decision) -> tuple[str, str]:
    one = next(c for c in decision.status.body()["conditions"] if c["type"] == "Sized")
    return one["reason"], one["message"]


def test_a_rank_that_needs_a_restart_is_said_and_rolled_out_only_where_allowed() -> None:
    large = finished("FineTuneJob", "large")
    large["spec"] = {"tuner": {"type": "LoRA", "rank": 128}}
    references = {("FineTuneJob", "large"): large}
    before = decided(world(serve()))
    assert "--max-lora-rank=64" in args(before)
    adapters = [{"name": "a", "fineTuneJobRef": {"name": "large"}}]
    held = decided(world(serve(adapters=adapters), references=references, children=children(stored(before))))
    assert "--max-lora-rank=64" in args(held)
    reason, message = sized(held)
    assert reason == "RestartNeeded"
    assert "adapter a has rank 128" in message
    assert "spec.engine.maxLoraRank to 128, or spec.engine.resize to Allowed" in message
    allowed = serve(adapters=adapters, engine={"resize": "Allowed"})
    restarted = decided(world(allowed, references=references, children=children(stored(before))))
    assert "--max-lora-rank=128" in args(restarted)
    assert sized(restarted)[0] == "Sized"
    assert "--max-lora-rank=128" in args(decided(world(serve(adapters=adapters), references=references)))


@pytest.mark.parametrize(
    ("spec", "ranks", "count", "old", "wanted"),
    [
        ({}, {}, 0, None, (64, 8, 32, "Sized")),
        ({}, {"a": 100}, 20, None, (128, 32, 64, "Sized")),
        ({}, {}, 500, None, (64, 32, 1024, "Sized")),
        ({}, {}, 500, (64, 8, 32), (64, 8, 32, "TooManyAdapters")),
        ({"resize": "Allowed"}, {}, 500, (64, 8, 32), (64, 32, 1024, "Sized")),
        ({"resize": "Allowed"}, {}, 0, (128, 32, 1024), (128, 32, 1024, "Sized")),
        ({"maxLoraRank": 16}, {"a": 32}, 1, (64, 8, 32), (16, 8, 32, "RestartNeeded")),
        ({"maxLoras": 64}, {}, 1, (64, 8, 32), (64, 64, 64, "Sized")),
        ({"resize": "Allowed"}, {"a": 1000}, 1, (64, 8, 32), (512, 8, 32, "RestartNeeded")),
    ],
)
def test_sizes(spec: Any, ranks: Any, count: int, old: Any, wanted: Any) -> None:
    sizes_before = dict(zip(("max_lora_rank", "max_loras", "max_cpu_loras"), old, strict=True)) if old else {}
    before = State(revision=1, model_name="b", model_path="/b", **sizes_before) if old else None
    found = sizes(Engine.model_validate(spec), ranks, count, before)
    assert (found.max_lora_rank, found.max_loras, found.max_cpu_loras, found.reason) == wanted


FOOTPRINT = {"weightsBytes": 14 * 2**30, "kvBytesPerToken": 2**17, "adaptersBytes": 2**30, "maxModelLen": 32768}


@pytest.mark.parametrize(
    ("spec", "gpu", "status", "words"),
    [
        ({}, None, "Unknown", "set resources.limits"),
        ({"resources": {"limits": {"nvidia.com/gpu": 1}}}, None, "Unknown", "not known"),
        ({"resources": {"limits": {"nvidia.com/gpu": 1}}}, 24 * 2**30, "True", "the KV cache can hold"),
        ({"resources": {"limits": {"nvidia.com/gpu": 1}}}, 17 * 2**30, "False", "set engine.maxModelLen to"),
        ({"resources": {"limits": {"nvidia.com/gpu": 1}}, "engine": {"maxModelLen": 1024}}, 17 * 2**30, "True", "1024"),
        ({"resources": {"limits": {"nvidia.com/gpu": 2}}}, 12 * 2**30, "True", "of 22.08 GiB"),
        ({"resources": {"limits": {"memory": "16Gi"}}}, None, "False", "use a smaller or quantised model"),
        (
            {"resources": {"limits": {"nvidia.com/gpu": 1}}, "engine": {"args": ["--gpu-memory-utilization=0.5"]}},
            24 * 2**30,
            "False",
            "there are only 12.00 GiB",
        ),
    ],
)
def test_what_does_not_fit_is_said_before_the_engine_fails(spec: Any, gpu: Any, status: str, words: str) -> None:
    agents = {"p0": AgentStatus.model_validate({**agent("u-p0").body(), "footprint": FOOTPRINT})}
    decision = decided(world(serve(**spec), pods=(pod("p0"),), agents=agents, gpu_memory=gpu))
    fits = next(c for c in decision.status.body()["conditions"] if c["type"] == "Fits")
    assert fits["status"] == status
    assert words in fits["message"]
    total = decision.status.body()["memory"]["totalBytes"]
    assert total == 15 * 2**30 + 2**17 * (spec.get("engine", {}).get("maxModelLen") or 32768)


def test_clients_keys_reach_the_engine_only_and_pods_drain_as_long_as_the_spec_says() -> None:
    engine = {"drainSeconds": 7, "shutdownTimeoutSeconds": 100}
    decision = decided(world(serve(apiKeySecretRef={"name": "keys"}, engine=engine)))
    spec = next(o for o in decision.apply if o["kind"] == "Deployment")["spec"]
    template = spec["template"]["spec"]
    assert "api-keys" in json.dumps(template["containers"])
    assert "api-keys" not in json.dumps(template["initContainers"])
    assert template["terminationGracePeriodSeconds"] > 107
    assert "--shutdown-timeout=100" in args(decision)
    assert template["containers"][0]["lifecycle"] == {"preStop": {"sleep": {"seconds": 7}}}
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert template["topologySpreadConstraints"][0]["topologyKey"] == "kubernetes.io/hostname"


def scalers(decision: Decision) -> list[dict[str, Any]]:
    return [o for o in decision.apply if o["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")]


def test_an_autoscaler_writes_the_resource_itself_and_goes_with_its_field() -> None:
    wanted = {"maxReplicas": 5, "queueLength": 4, "cacheUsagePercent": 80}
    [hpa] = scalers(decided(world(serve(autoscaling=wanted))))
    assert hpa["spec"]["scaleTargetRef"] == {
        "apiVersion": "tunesmith.io/v1alpha1",
        "kind": "ModelDeployment",
        "name": "x",
    }
    targets = {m["pods"]["metric"]["name"]: m["pods"]["target"]["averageValue"] for m in hpa["spec"]["metrics"]}
    assert targets == {"vllm:num_requests_waiting": "4", "vllm:kv_cache_usage_perc": "800m"}
    live = mine("HorizontalPodAutoscaler", "x")
    assert decided(world(serve(), children=children(live))).delete == (live,)
    keda = {**wanted, "scaler": "KEDA", "minReplicas": 0, "prometheus": "http://prometheus:9090"}
    changed = decided(world(serve(autoscaling=keda), children=children(live)))
    assert changed.delete == (live,)
    [scaled] = scalers(changed)
    assert scaled["spec"]["minReplicaCount"] == 0
    assert scaled["spec"]["triggers"][0]["metadata"]["query"] == (
        'sum(vllm:num_requests_waiting{namespace="ns",pod=~"x-engine-.+"})'
    )
    assert changed.status.body()["autoscaler"] == "KEDA"
    [behind] = scalers(decided(world(serve(autoscaling=keda, gateway={}))))
    assert behind["spec"]["triggers"][0]["metadata"]["query"] == (
        '(sum(vllm:num_requests_waiting{namespace="ns",pod=~"x-engine-.+"}) or vector(0))'
        ' + (sum(tunesmith_gateway_held_requests{namespace="ns",pod=~"x-gateway-.+"}) or vector(0))'
    )
