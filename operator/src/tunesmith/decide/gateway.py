"""The gateway of a ModelDeployment: its objects, its routes, and whether engines run at all."""

from __future__ import annotations

from datetime import datetime
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from tunesmith.api.modeldeployment import GatewayReport, ModelDeployment
from tunesmith.children.gateway import (
    ROUTES_KEY,
    engines_name,
    engines_service,
    gateway_budget,
    gateway_deployment,
    gateway_labels,
    gateway_name,
    http_route,
)
from tunesmith.children.meta import Object
from tunesmith.children.serving import adapters_name, service
from tunesmith.decide import canary
from tunesmith.decide.world import Ref, World
from tunesmith.serving.contract import State
from tunesmith.serving.routes import CANARY, Routes, Split
from tunesmith.settings import Settings

Told = TypeVar("Told", bound=BaseModel)


def names(world: World) -> list[Ref]:
    """Its objects, those that there may be included."""
    owner = world.owner
    return [
        ("Deployment", gateway_name(owner)),
        ("PodDisruptionBudget", gateway_name(owner)),
        ("Service", engines_name(owner)),
        ("HTTPRoute", owner.name),
    ]


def objects(world: World, resource: ModelDeployment, settings: Settings) -> tuple[list[Object], tuple[Object, ...]]:
    """(to apply, to delete)."""
    owner, spec, wanted = world.owner, resource.spec, resource.spec.gateway
    made: list[Object] = []
    if wanted:
        budget = gateway_budget(owner, wanted.replicas)
        made = [
            engines_service(owner),
            gateway_deployment(owner, spec, wanted, settings),
            *([budget] if budget else []),
            *([http_route(owner, wanted.http_route)] if wanted.http_route else []),
        ]
    kept = {(body["kind"], body["metadata"]["name"]) for body in made}
    live = [world.children.get(ref) for ref in names(world) if ref not in kept]
    return made, tuple(one for one in live if one is not None and owner.owns(one))


def front(world: World, resource: ModelDeployment) -> Object:
    """The Service of clients: of the gateway's pods as soon as there is one, and from then on."""
    body = service(world.owner)
    labels = gateway_labels(world.owner)
    live = world.children.get(("Service", world.owner.name))
    before = live is not None and live["spec"].get("selector") == labels
    if resource.spec.gateway and (before or _counts(world).get("readyReplicas", 0)):
        return {**body, "spec": {**body["spec"], "selector": labels}}
    return body


def routes(world: World, resource: ModelDeployment, state: State) -> Routes | None:
    """What the gateways should do. Its revision grows when its content differs from what is stored."""
    wanted, spec = resource.spec.gateway, resource.spec
    if wanted is None:
        return None
    canaries = {adapter.name: adapter.canary for adapter in spec.adapters if adapter.canary}
    splits = {
        one.name: Split(percent=part, trial=canary.key(one.name, one.trial))
        for one in state.adapters
        if one.trial and one.name in canaries and (part := canary.percent(canaries[one.name], one.trial))
    }
    new = Routes(
        revision=0,
        model_name=spec.model_name,
        adapters=[one.name for one in state.adapters if not one.name.endswith(CANARY)],
        splits=splits,
        hold_seconds=wanted.hold_seconds,
        max_held=wanted.max_held,
    )
    old = stored(world, ROUTES_KEY, Routes)
    if old is not None and old.model_copy(update={"revision": 0}) == new:
        return old
    seen = [one.revision for one in world.gateways.values()]
    revision = max([int(world.now.timestamp()), *(number + 1 for number in [*seen, old.revision if old else 0])])
    return new.model_copy(update={"revision": revision})


def running(world: World, resource: ModelDeployment, live: Object | None) -> int:
    """How many engines should run now: what the spec says, or none while nobody asks for anything."""
    wanted, number = resource.spec.gateway, resource.spec.replicas
    if wanted is None or wanted.idle_seconds is None or live is None or not number:
        return number
    asked = any(one.held for one in world.gateways.values())
    if int(live["spec"].get("replicas", 1)) == 0:
        return number if asked else 0
    ready = next((c for c in resource.status.conditions if c.type == "Ready"), None)
    if ready is None or ready.status != "True" or asked:
        return number
    # Nothing is known of a gateway that does not answer, and one that has just begun knows nothing yet.
    known = len(world.gateways)
    if not known or known < max(int(_counts(world).get("replicas", 0)), len(world.gateway_pods)):
        return number
    served = (world.now - datetime.fromisoformat(ready.last_transition_time)).total_seconds()
    idle = min(one.idle_seconds for one in world.gateways.values())
    busy = any(one.in_flight for one in world.gateways.values())
    return 0 if not busy and min(idle, served) >= wanted.idle_seconds else number


def report(world: World, resource: ModelDeployment) -> GatewayReport | None:
    """For the status."""
    if resource.spec.gateway is None:
        return None
    counts = _counts(world)
    return GatewayReport(
        replicas=int(counts.get("replicas", 0)),
        ready_replicas=int(counts.get("readyReplicas", 0)),
        held=sum(one.held for one in world.gateways.values()),
        http_route=resource.spec.gateway.http_route is not None,
    )


def stored(world: World, key: str, model: type[Told]) -> Told | None:
    """What the ConfigMap of a ModelDeployment holds under a key; None where that cannot be read."""
    live = world.children.get(("ConfigMap", adapters_name(world.owner)))
    try:
        return model.model_validate_json(((live or {}).get("data") or {}).get(key, ""))
    except ValidationError:
        return None


def _counts(world: World) -> Object:
    live = world.children.get(("Deployment", gateway_name(world.owner)))
    return (live or {}).get("status") or {}
