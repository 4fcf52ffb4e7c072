"""The gateway's objects, and whether engines run while nobody asks for anything."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from tunesmith.api.modeldeployment import ModelDeployment
from tunesmith.children.gateway import gateway_labels
from tunesmith.children.meta import Object
from tunesmith.children.serving import pod_labels
from tunesmith.decide.modeldeployment import decide
from tunesmith.decide.world import Decision, World
from tunesmith.serving.routes import GatewayStatus, Routes
from tunesmith.settings import Settings
from unit.operator.builders import NOW, children, mine, pod, serve, world

SETTINGS = Settings()
ROOT = Path(__file__).parents[3]


def decided(world: World) -> Decision:
    decision = decide(world, SETTINGS)
    assert decision is not None
    return decision


def one(decision: Decision, kind: str, name: str) -> Object:
    return next(o for o in decision.apply if (o["kind"], o["metadata"]["name"]) == (kind, name))


def names(objects: tuple[Object, ...]) -> set[tuple[str, str]]:
    return {(o["kind"], o["metadata"]["name"]) for o in objects}


OWN = {("Deployment", "x-gateway"), ("Service", "x-engines"), ("PodDisruptionBudget", "x-gateway")}


def test_there_is_none_where_none_is_asked_for() -> None:
    decision = decided(world(serve()))
    assert not OWN & names(decision.apply)
    assert set(one(decision, "ConfigMap", "x-adapters")["data"]) == {"state.json"}
    assert "gateway" not in decision.status.body()


def test_clients_get_to_it_as_soon_as_one_of_its_pods_is_ready_and_from_then_on() -> None:
    resource = serve(gateway={})
    first = decided(world(resource))
    assert names(first.apply) >= OWN
    owner = world(resource).owner
    assert one(first, "Service", "x")["spec"]["selector"] == pod_labels(owner)
    assert one(first, "Service", "x-engines")["spec"]["selector"] == pod_labels(owner)
    ready = mine("Deployment", "x-gateway", status={"replicas": 2, "readyReplicas": 1})
    then = one(decided(world(resource, children=children(ready))), "Service", "x")
    assert then["spec"]["selector"] == gateway_labels(owner)
    live = mine("Service", "x", spec=then["spec"])
    gone = mine("Deployment", "x-gateway", status={"replicas": 2})
    later = decided(world(resource, children=children(gone, live)))
    assert one(later, "Service", "x")["spec"] == then["spec"], "engines would not know what the gateway does"


def test_what_is_not_asked_for_any_more_is_removed_and_clients_get_to_the_engines() -> None:
    live = [mine(kind, name, spec={}, status={}) for kind, name in OWN] + [mine("HTTPRoute", "x")]
    service = mine("Service", "x", spec={"selector": {"tunesmith.io/role": "gateway"}})
    decision = decided(world(serve(), children=children(*live, service)))
    assert names(decision.delete) == {*OWN, ("HTTPRoute", "x")}
    assert one(decision, "Service", "x")["spec"]["selector"] == pod_labels(world(serve()).owner)


def test_another_owners_objects_are_left_alone() -> None:
    foreign = {"kind": "Deployment", "metadata": {"name": "x-gateway", "ownerReferences": []}}
    decision = decided(world(serve(gateway={}), children=children(foreign)))
    assert decision.status.body()["conditions"][0]["reason"] == "NameTaken"
    assert not decided(world(serve(), children=children(foreign))).delete


def test_an_http_route_goes_to_the_service_without_a_timeout() -> None:
    wanted = {"parentRefs": [{"name": "public", "namespace": "infra"}], "hostnames": ["chat.example.com"]}
    route = one(decided(world(serve(gateway={"httpRoute": wanted}))), "HTTPRoute", "x")
    assert route["spec"]["parentRefs"] == [{"name": "public", "namespace": "infra"}]
    assert route["spec"]["hostnames"] == ["chat.example.com"]
    [rule] = route["spec"]["rules"]
    assert rule["backendRefs"] == [{"name": "x", "port": 80}]
    assert rule["timeouts"] == {"request": "0s"}


def test_routes_change_with_the_spec_only_and_are_sent_to_gateways_that_are_behind() -> None:
    gateway_pods = [pod("g0", podIP="10.0.1.0"), pod("g1", podIP="10.0.1.1")]

    def look(config: Object | None, revisions: tuple[int, int], **spec: Any) -> tuple[Object, Decision]:
        gateways = {f"g{n}": GatewayStatus(revision=revision) for n, revision in enumerate(revisions)}
        known = children(config) if config else {}
        decision = decided(
            world(
                serve(gateway=spec),
                children=known,
                gateway_pods=tuple(gateway_pods),
                gateways=gateways,
                now=NOW + timedelta(seconds=10 * bool(config)),
            )
        )
        return mine("ConfigMap", "x-adapters", data=one(decision, "ConfigMap", "x-adapters")["data"]), decision

    first, _ = look(None, (0, 0))
    routes = Routes.model_validate_json(first["data"]["routes.json"])
    assert (routes.model_name, routes.adapters, routes.hold_seconds) == ("base", [], 300)
    again, decision = look(first, (routes.revision, routes.revision))
    assert again == first
    assert not decision.push
    changed, decision = look(first, (routes.revision, 0), holdSeconds=9)
    new = json.loads(changed["data"]["routes.json"])
    assert new["revision"] > routes.revision
    assert [(address, known.body()) for address, known in decision.push] == [("10.0.1.0", new), ("10.0.1.1", new)]


IDLE = 60
READY = {
    "type": "Ready",
    "status": "True",
    "reason": "Ready",
    "message": "",
    "lastTransitionTime": "2026-01-02T03:00:00Z",
    "observedGeneration": 3,
}
STARTING = {**READY, "status": "False", "reason": "Starting"}
JUST_READY = {**READY, "lastTransitionTime": "2026-01-02T03:04:00Z"}


@pytest.mark.parametrize(
    ("running", "gateways", "ready", "expected"),
    [
        (2, [{"idle_seconds": 60}, {"idle_seconds": 61}], READY, 0),
        (2, [{"idle_seconds": 60}, {"idle_seconds": 59}], READY, 2),
        (2, [{"idle_seconds": 60}, {"idle_seconds": 60, "in_flight": 1}], READY, 2),
        (2, [{"idle_seconds": 60}, {"idle_seconds": 60, "held": 1}], READY, 2),
        # One of the two does not answer: nothing is known of its requests.
        (2, [{"idle_seconds": 600}], READY, 2),
        (2, [], READY, 2),
        # It has not served for as long yet, or at all.
        (2, [{"idle_seconds": 600}, {"idle_seconds": 600}], JUST_READY, 2),
        (2, [{"idle_seconds": 600}, {"idle_seconds": 600}], STARTING, 2),
        (2, [{"idle_seconds": 600}, {"idle_seconds": 600}], None, 2),
        (0, [{"idle_seconds": 600}, {"idle_seconds": 600}], READY, 0),
        (0, [{"idle_seconds": 600}], READY, 0),
        (0, [{"idle_seconds": 600}, {"held": 1, "in_flight": 1}], READY, 2),
        (0, [{"held": 1, "in_flight": 1}], READY, 2),
    ],
)
def test_engines_run_while_they_are_asked(
    running: int, gateways: list[dict[str, Any]], ready: dict[str, Any] | None, expected: int
) -> None:
    conditions = [ready] if ready else []
    resource = serve({"conditions": conditions}, replicas=2, gateway={"idleSeconds": IDLE})
    engines = mine("Deployment", "x-engine", spec={"replicas": running}, status={"readyReplicas": running})
    own = mine("Deployment", "x-gateway", spec={}, status={"replicas": 2, "readyReplicas": 2})
    said = {f"g{n}": GatewayStatus(revision=1, **fields) for n, fields in enumerate(gateways)}
    decision = decided(world(resource, children=children(engines, own), gateways=said))
    assert one(decision, "Deployment", "x-engine")["spec"]["replicas"] == expected
    condition = decision.status.body()["conditions"][0]
    assert (condition["reason"] == "ScaledToZero") == (expected == 0)
    assert (condition["status"] == "True") == (expected == 0 or running == 2)
    if expected == 0:
        assert decision.again == SETTINGS.poll_seconds, "the next request must not wait to be seen"


def test_engines_run_always_where_nothing_else_is_said() -> None:
    engines = mine("Deployment", "x-engine", spec={"replicas": 1}, status={"readyReplicas": 1})
    said = {"g0": GatewayStatus(revision=1, idle_seconds=10**6)}
    decision = decided(world(serve({"conditions": [READY]}, gateway={}), children=children(engines), gateways=said))
    assert one(decision, "Deployment", "x-engine")["spec"]["replicas"] == 1


def test_its_pods_hold_no_right_and_no_more_than_the_newest_token() -> None:
    resource = serve(gateway={}, apiKeySecretRef={"name": "keys"})
    template = one(decided(world(resource)), "Deployment", "x-gateway")["spec"]["template"]["spec"]
    assert template["automountServiceAccountToken"] is False
    volumes = {volume["name"]: volume for volume in template["volumes"]}
    assert volumes["admin"]["secret"]["items"] == [{"key": "token", "path": "token"}]
    assert volumes["routes"]["configMap"]["items"] == [{"key": "routes.json", "path": "routes.json"}]
    assert volumes["api-keys"]["secret"]["secretName"] == "keys"
    [container] = template["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_the_example_of_the_docs_is_what_the_fields_say() -> None:
    [example] = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "gateway.md").read_text(), re.DOTALL)
    spec = yaml.safe_load(example)["spec"]
    resource = serve()
    resource["spec"] = spec

    def known(said: Any, read: Any, path: str) -> None:
        if isinstance(said, dict):
            for key, value in said.items():
                assert key in read, f"{path}.{key} is no field"
                known(value, read[key], f"{path}.{key}")
        elif isinstance(said, list):
            for number, value in enumerate(said):
                known(value, read[number], f"{path}[{number}]")
        else:
            assert said == read, path

    known(spec, ModelDeployment.model_validate(resource).spec.body(), "spec")
    decision = decided(world(resource))
    desired = json.loads(one(decision, "ConfigMap", "x-adapters")["data"]["state.json"])["adapters"]
    assert [adapter["name"] for adapter in desired] == ["support", "support@canary"]


def test_what_the_cluster_may_not_know_is_applied_last() -> None:
    resource = serve(gateway={"httpRoute": {"parentRefs": [{"name": "public"}]}})
    kinds = [body["kind"] for body in decided(world(resource)).apply]
    assert kinds[-1] == "HTTPRoute"
