"""ModelDeployment: references -> engine pods -> adapters as the engines report them."""

from __future__ import annotations

import json
from typing import Literal

from tunesmith.api.modeldeployment import Adapter, AdapterStatus, ModelDeployment, ModelDeploymentStatus
from tunesmith.children.meta import Object
from tunesmith.children.pods import SECRETS, Input
from tunesmith.children.serving import (
    adapters_config_map,
    adapters_name,
    admin_name,
    admin_secret,
    deployment,
    deployment_name,
    disruption_budget,
    pod_labels,
    service,
)
from tunesmith.decide import pods as pod_facts
from tunesmith.decide.references import References, resolve, sources, wrong_kind
from tunesmith.decide.world import Decision, Event, World, condition, deleting, foreign, held
from tunesmith.serving.contract import ADAPTERS_FOLDER, DesiredAdapter, ObservedAdapter, State
from tunesmith.settings import Settings
from tunesmith.training.location import locate
from tunesmith.training.planning import address

WAIT_SECONDS = 15.0
Word = tuple[Literal["True", "False", "Unknown"], str, str]


def decide(world: World, settings: Settings) -> Decision | None:
    """What to do for a ModelDeployment now. None: nothing, it is being deleted."""
    if deleting(world.resource):
        return None
    resource = ModelDeployment.model_validate(world.resource)
    spec, owner = resource.spec, world.owner
    found = resolve(world, [source for _, source, _ in sources(resource)])
    live = world.children.get(("Deployment", deployment_name(owner)))

    def stop(reason: str, message: str) -> Decision:
        return Decision(status=held(world, resource.status, reason, message), again=WAIT_SECONDS)

    if spec.model.reference in found.waiting and spec.model.reference:
        # A model that was served goes on being served while the job that made it is made again.
        return stop("WaitingForReference", found.waiting[spec.model.reference])
    if message := wrong_kind(found, spec.model, "spec.model", "models"):
        return stop("ConfigError", message)
    if world.missing:
        return stop("WaitingForInput", "; ".join(world.missing))
    if message := foreign(
        world,
        [
            ("Deployment", deployment_name(owner)),
            ("Service", owner.name),
            ("ConfigMap", adapters_name(owner)),
            ("Secret", admin_name(owner)),
            ("PodDisruptionBudget", owner.name),
        ],
    ):
        return stop("NameTaken", message)

    uri = address(spec.model, found.addresses)
    state = desired_state(world, resource, uri, found)
    model = Input(uri, spec.model.secret_ref.name if spec.model.secret_ref else None)
    store = settings.default_store if world.store_exists else None
    budget = disruption_budget(owner, spec.replicas)
    live_budget = world.children.get(("PodDisruptionBudget", owner.name))
    applied: list[Object] = [
        adapters_config_map(owner, state),
        service(owner),
        deployment(owner, spec, state, model, store, settings),
        *([budget] if budget else []),
    ]
    status = observed_status(world, resource, state, found, live)
    was = next((c.status for c in resource.status.conditions if c.type == "Ready"), None)
    now = status.conditions[0]
    changed = (now.status == "True") != (was == "True")
    return Decision(
        status=status,
        create=(admin_secret(owner, world.token),),
        apply=tuple(applied),
        delete=(live_budget,) if live_budget is not None and budget is None else (),
        push=tuple(
            (pod["status"]["podIP"], state)
            for pod in world.pods
            if pod_facts.name(pod) in world.agents and world.agents[pod_facts.name(pod)].revision < state.revision
        ),
        again=settings.poll_seconds if not _settled(status) else WAIT_SECONDS,
        events=(Event("Normal" if now.status == "True" else "Warning", now.reason, now.message),) if changed else (),
    )


def desired_state(world: World, resource: ModelDeployment, model_path_uri: str, found: References) -> State:
    """What the pods should serve. Its revision grows when its content differs from the stored state, past the
    clock and past what any agent has seen, so that a ConfigMap made anew does not fall behind them.
    """
    spec = resource.spec
    adapters = [_desired(adapter, uri) for adapter in spec.adapters if (uri := _adapter_uri(resource, adapter, found))]
    new = State(
        revision=0,
        model_name=spec.model_name,
        model_path=locate(model_path_uri).path,
        max_lora_rank=spec.engine.max_lora_rank,
        adapters=adapters,
    )
    stored = world.children.get(("ConfigMap", adapters_name(world.owner)))
    old = State.model_validate(json.loads(stored["data"]["state.json"])) if stored else None
    if old is not None and old.model_copy(update={"revision": 0}) == new:
        return old
    seen = [agent.revision for agent in world.agents.values()]
    revision = max([int(world.now.timestamp()), *(number + 1 for number in [*seen, old.revision if old else 0])])
    return new.model_copy(update={"revision": revision})


def _adapter_uri(resource: ModelDeployment, adapter: Adapter, found: References) -> str | None:
    """Where the adapter is; None: nowhere yet. What was served under its name is served on while the job that it
    refers to is away or runs anew: clearing up jobs takes nothing out of service.
    """
    if wrong_kind(found, adapter, "", "adapters"):
        return None
    if adapter.reference in found.waiting:
        return next((old.uri for old in resource.status.adapters if old.name == adapter.name), None)
    return address(adapter, found.addresses)


def _desired(adapter: Adapter, uri: str) -> DesiredAdapter:
    place = locate(uri)
    return DesiredAdapter(
        name=adapter.name,
        uri=uri,
        # A fetched adapter lies beside the agent's own copies, which outlive the agent's container.
        path=f"{ADAPTERS_FOLDER}/.fetched/{place.path.rsplit('/', 1)[1]}" if place.fetch else place.path,
        fetch=place.fetch,
        secret=f"{SECRETS}/{adapter.secret_ref.name}" if adapter.secret_ref else None,
        required=adapter.required == "Always",
    )


def observed_status(
    world: World, resource: ModelDeployment, state: State, found: References, live: Object | None
) -> ModelDeploymentStatus:
    """The status, from the Deployment and from what the agents say of their engines."""
    spec, owner, old = resource.spec, world.owner, resource.status
    counts = (live or {}).get("status") or {}
    ready = int(counts.get("readyReplicas", 0))
    adapters = adapter_statuses(world, resource, state, found)
    served = sum(adapter.state == "Ready" for adapter in adapters)
    first, second = _ready_word(world, spec.replicas, ready, counts), _adapters_word(adapters)
    return ModelDeploymentStatus(
        conditions=[
            condition(world, old.conditions, "Ready", *first),
            condition(world, old.conditions, "AdaptersReady", *second),
        ],
        observed_generation=world.generation,
        replicas=int(counts.get("replicas", 0)),
        ready_replicas=ready,
        selector=",".join(f"{key}={value}" for key, value in sorted(pod_labels(owner).items())),
        url=f"http://{owner.name}.{owner.namespace}.svc/v1",
        adapters=adapters,
        adapters_summary=f"{served}/{len(adapters)}",
    )


def adapter_statuses(world: World, resource: ModelDeployment, state: State, found: References) -> list[AdapterStatus]:
    """One per adapter of the spec. An adapter is Ready when every ready pod serves its newest version."""
    wanted = {adapter.name: adapter for adapter in state.adapters}
    pods = [pod_facts.name(pod) for pod in world.pods if pod_facts.running(pod)]
    result = []
    for index, adapter in enumerate(resource.spec.adapters):
        if adapter.name not in wanted:
            ref = adapter.reference
            wrong = wrong_kind(found, adapter, f"spec.adapters[{index}]", "adapters")
            result.append(
                AdapterStatus(name=adapter.name, state="Failed", message=wrong)
                if wrong
                else AdapterStatus(name=adapter.name, state="Waiting", message=found.waiting[ref] if ref else None)
            )
            continue
        uri = wanted[adapter.name].uri
        seen = {
            name: one
            for name in pods
            if name in world.agents
            for one in world.agents[name].adapters
            if one.name == adapter.name and one.uri == uri
        }
        status = _adapter_status(adapter.name, uri, len(pods), seen)
        if status.message is None and adapter.reference in found.waiting:
            waits = found.waiting[adapter.reference] if adapter.reference else ""
            status = status.model_copy(update={"message": f"{waits}; what it made before is served"})
        result.append(status)
    return result


def _adapter_status(name: str, uri: str, pods: int, seen: dict[str, ObservedAdapter]) -> AdapterStatus:
    ready = sum(one.state == "Ready" for one in seen.values())
    failed = {pod: one for pod, one in seen.items() if one.state == "Failed"}
    state: Literal["Ready", "Failed", "Loading"] = (
        "Failed" if failed else "Ready" if pods and ready == pods else "Loading"
    )
    pod, one = next(iter(failed.items()), ("", None))
    return AdapterStatus(
        name=name,
        state=state,
        uri=uri,
        digest=next((f"sha256:{one.digest}" for one in seen.values() if one.digest), None),
        ready_pods=ready,
        message=f"pod {pod}: {one.message}"[:2048] if one else None,
    )


def _ready_word(world: World, replicas: int, ready: int, counts: Object) -> Word:
    if replicas == 0:
        return "False", "ScaledToZero", "spec.replicas is 0"
    held = pod_facts.problem(world.pods)
    if ready >= replicas:
        updated = int(counts.get("updatedReplicas", 0))
        if updated < replicas or int(counts.get("replicas", 0)) > replicas:
            return "True", "Updating", f"{updated} of {replicas} pods run as the spec says now"
        return "True", "Ready", "all pods serve"
    waiting = next((agent.waiting for agent in world.agents.values() if agent.waiting), None)
    if waiting and not ready:
        return "False", "WaitingForInput", waiting
    if ready:
        return "True", "Degraded", held or "some pods do not serve yet"
    return "False", "Starting", held or "no pod serves yet: vLLM is loading the model"


def _adapters_word(adapters: list[AdapterStatus]) -> Word:
    for state, reason in (
        ("Failed", "AdapterFailed"),
        ("Waiting", "WaitingForReference"),
        ("Loading", "Loading"),
    ):
        found = [adapter for adapter in adapters if adapter.state == state]
        if found:
            return "False", reason, "; ".join(f"{a.name}: {a.message or 'loading'}" for a in found)
    return "True", "AdaptersReady", "every adapter is served" if adapters else "there are none"


def _settled(status: ModelDeploymentStatus) -> bool:
    return all(c.status == "True" for c in status.conditions) and status.ready_replicas == status.replicas
