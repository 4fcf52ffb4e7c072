"""ModelDeployment: references -> engine pods -> adapters as the engines report them."""

from __future__ import annotations

import base64
from datetime import datetime, timedelta
from typing import Literal

from tunesmith.api.modeldeployment import AdapterStatus, ModelDeployment, ModelDeploymentStatus, ServingMemory
from tunesmith.api.tuner import Tuner
from tunesmith.children.autoscaling import KINDS as SCALERS
from tunesmith.children.autoscaling import autoscaler
from tunesmith.children.gateway import with_routes
from tunesmith.children.groups import group_policy, leader_worker_set, name_problem
from tunesmith.children.meta import Object
from tunesmith.children.modelcache import model_input
from tunesmith.children.serving import (
    ADAPTER_LABEL,
    ROTATED,
    STATE_KEY,
    adapter_endpoints,
    adapter_service,
    adapters_config_map,
    adapters_name,
    admin_name,
    admin_secret,
    deployment,
    deployment_name,
    disruption_budget,
    own_names,
    pod_labels,
)
from tunesmith.decide import adapters, gateway
from tunesmith.decide import pods as pod_facts
from tunesmith.decide.capacity import fits, memory
from tunesmith.decide.references import References, resolve, sources, wrong_kind
from tunesmith.decide.sizing import Sizes, sizes
from tunesmith.decide.world import Decision, Event, World, condition, deleting, foreign, held
from tunesmith.serving.contract import Footprint, State
from tunesmith.serving.parallel import problem
from tunesmith.settings import Settings
from tunesmith.training.planning import RANK, address

WAIT_SECONDS = 15.0
ROLLOUT_SECONDS = 0.3
MAX_STATE_BYTES = 2**20  # of a ConfigMap
NAMED = 10
"""Adapters of which a condition's message tells; all are in status.adapters."""
Word = tuple[Literal["True", "False", "Unknown"], str, str]


def decide(world: World, settings: Settings) -> Decision | None:
    """What to do for a ModelDeployment now. None: nothing, it is being deleted."""
    if deleting(world.resource):
        return None
    resource = ModelDeployment.model_validate(world.resource)
    spec, owner = resource.spec, world.owner
    served = [*adapters.wanted(world, resource), *adapters.tried(resource)]
    taken = [*(source for _, source, _ in sources(resource)), *served]
    found = resolve(world, taken)
    kind = "Deployment" if spec.engine.nodes == 1 else "LeaderWorkerSet"
    live = world.children.get((kind, deployment_name(owner)))

    def stop(reason: str, message: str) -> Decision:
        return Decision(status=held(world, resource.status, reason, message), again=WAIT_SECONDS)

    if spec.model.reference in found.waiting and spec.model.reference:
        # A model that was served goes on being served while the job that made it is made again.
        return stop("WaitingForReference", found.waiting[spec.model.reference])
    if message := wrong_kind(found, spec.model, "spec.model", "models", owner.kind):
        return stop("ConfigError", message)
    if message := problem(spec) or name_problem(owner, spec):
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
            ("LeaderWorkerSet", deployment_name(owner)),
            ("NetworkPolicy", deployment_name(owner)),
            *(gateway.names(world) if spec.gateway else []),
            *([(SCALERS[spec.autoscaling.scaler], owner.name)] if spec.autoscaling else []),
            *own_names(owner, spec.adapters),
        ],
    ):
        return stop("NameTaken", message)

    uri = address(spec.model, found.addresses)
    old = stored_state(world)
    ranks = known_ranks(world, resource, old)
    size = sizes(spec.engine, ranks, len(served), old)
    model = model_input(owner, spec, uri)
    state = desired_state(world, resource, model.place.path, found, old, size)
    routes = gateway.routes(world, resource, state)
    told = adapters_config_map(owner, state)
    if routes:
        told = with_routes(told, routes)
    if (size_of := sum(len(text.encode()) for text in told["data"].values())) > MAX_STATE_BYTES:
        return stop(
            "ConfigError",
            f"what the pods must know of {len(state.adapters)} adapters takes {size_of // 1024} KiB, and a ConfigMap "
            "holds 1024: serve fewer, or shorten their addresses and smoke requests",
        )
    create, rotated = admin(world, settings)
    services, stale = own_services(world, resource, state)
    store = settings.default_store if world.store_exists else None
    gateways, unused = gateway.objects(world, resource, settings)
    # What the pods are made from; the spec itself is its owner's.
    run = spec.model_copy(update={"replicas": gateway.running(world, resource, live)})
    budget = disruption_budget(owner, run.replicas)
    live_budget = world.children.get(("PodDisruptionBudget", owner.name))
    applied: list[Object] = [
        told,
        gateway.front(world, resource),
        *(
            [deployment(owner, run, state, model, store, settings)]
            if spec.engine.nodes == 1
            else [group_policy(owner, settings), leader_worker_set(owner, run, state, model, store, settings)]
        ),
        *([budget] if budget else []),
        *rotated,
        *services,
        # Last what the cluster may not know: all else is there then.
        *gateways,
        *([autoscaler(owner, spec.autoscaling, gateway=bool(spec.gateway))] if spec.autoscaling else []),
    ]
    status = observed_status(world, resource, state, found, live, size, run.replicas)
    was = next((c.status for c in resource.status.conditions if c.type == "Ready"), None)
    now = status.conditions[0]
    changed = (now.status == "True") != (was == "True")
    return Decision(
        status=status,
        create=create,
        apply=tuple(applied),
        delete=((live_budget,) if live_budget is not None and budget is None else ())
        + stale
        + unused
        + unwanted_scalers(world, resource)
        + of_the_other_kind(world, kind, live, run.replicas),
        push=tuple(
            (pod["status"]["podIP"], state)
            for pod in world.pods
            if pod_facts.name(pod) in world.agents and world.agents[pod_facts.name(pod)].revision < state.revision
        )
        + tuple(
            (pod["status"]["podIP"], routes)
            for pod in world.gateway_pods
            if routes and (known := world.gateways.get(pod_facts.name(pod))) and known.revision < routes.revision
        ),
        again=_patience(state, status, settings),
        events=(Event("Normal" if now.status == "True" else "Warning", now.reason, now.message),) if changed else (),
    )


def stored_state(world: World) -> State | None:
    """What the pods were told last: the memory of what is being rolled out, and of what was derived once. None where
    there is nothing that can be read: then it is written anew.
    """
    return gateway.stored(world, STATE_KEY, State)


def known_ranks(world: World, resource: ModelDeployment, old: State | None) -> dict[str, int]:
    """The ranks of adapters as far as they are known: of jobs, and of what was too large for an engine."""
    ranks: dict[str, int] = {}
    for adapter in [*adapters.wanted(world, resource), *adapters.tried(resource)]:
        if job := adapter.fine_tune_job_ref and world.references.get(("FineTuneJob", adapter.fine_tune_job_ref.name)):
            tuner = Tuner.model_validate(job["spec"].get("tuner") or {})
            if tuner.type != "Full":
                ranks[adapter.name] = tuner.rank or RANK
    refused = [one for pod in adapters.pods(world) for one in pod.adapters.values()]
    for name, rank in [
        *((one.name, one.rank) for one in refused),
        *((one.name, one.rejected.rank) for one in (old.adapters if old else []) if one.rejected),
    ]:
        if rank:
            ranks[name] = max(rank, ranks.get(name, 0))
    return ranks


def desired_state(
    world: World, resource: ModelDeployment, model_path: str, found: References, old: State | None, size: Sizes
) -> State:
    """What the pods should serve. Its revision grows when its content differs from the stored state, past the
    clock and past what any agent has seen, so that a ConfigMap made anew does not fall behind them.
    """
    before = {adapter.name: adapter for adapter in (old.adapters if old else [])}
    new = State(
        revision=0,
        model_name=resource.spec.model_name,
        model_path=model_path,
        max_lora_rank=size.max_lora_rank,
        max_loras=size.max_loras,
        max_cpu_loras=size.max_cpu_loras,
        adapters=adapters.desired(world, resource, found, before, size.max_lora_rank),
    )
    if old is not None and old.model_copy(update={"revision": 0}) == new:
        return old
    seen = [agent.revision for agent in world.agents.values()]
    revision = max([int(world.now.timestamp()), *(number + 1 for number in [*seen, old.revision if old else 0])])
    return new.model_copy(update={"revision": revision})


def admin(world: World, settings: Settings) -> tuple[tuple[Object, ...], tuple[Object, ...]]:
    """(to create, to apply): the admin token, made once, and made anew when it is old."""
    owner, live = world.owner, world.children.get(("Secret", admin_name(world.owner)))
    if live is None:
        return (admin_secret(owner, world.token, "", world.stamp),), ()
    made, token = live["metadata"].get("annotations", {}).get(ROTATED), (live.get("data") or {}).get("token")
    if live.get("immutable"):
        return (), ()
    if not token:  # somebody took it away
        return (), (admin_secret(owner, world.token, "", world.stamp),)
    if made is None:
        return (), ()
    if world.now - datetime.fromisoformat(made) < timedelta(days=settings.token_days):
        return (), ()
    previous = base64.b64decode(token).decode()
    return (), (admin_secret(owner, world.token, previous, world.stamp),)


def unwanted_scalers(world: World, resource: ModelDeployment) -> tuple[Object, ...]:
    """Autoscalers of ours that the spec does not ask for any more."""
    wanted = resource.spec.autoscaling and resource.spec.autoscaling.scaler
    live = [world.children.get((kind, world.owner.name)) for name, kind in SCALERS.items() if name != wanted]
    return tuple(one for one in live if one is not None and world.owner.owns(one))


def of_the_other_kind(world: World, kind: str, live: Object | None, replicas: int) -> tuple[Object, ...]:
    """What held the pods before they became groups, or the reverse: it serves until the new ones do."""
    if live is None or int((live.get("status") or {}).get("readyReplicas", 0)) < replicas:
        return ()
    others = {"Deployment": ("LeaderWorkerSet", "NetworkPolicy"), "LeaderWorkerSet": ("Deployment",)}[kind]
    found = [world.children.get((other, deployment_name(world.owner))) for other in others]
    return tuple(one for one in found if one is not None and world.owner.owns(one))


def own_services(world: World, resource: ModelDeployment, state: State) -> tuple[list[Object], tuple[Object, ...]]:
    """(to apply, to delete): Service and endpoints of each adapter that is not on all pods."""
    wanted = {adapter.name for adapter in resource.spec.adapters if adapter.replicas}
    serving = {pod.name: pod for pod in adapters.pods(world)}
    result: list[Object] = []
    for adapter in state.adapters:
        if adapter.name in wanted:
            # An older version that is served while a new one is rolled out counts, as it does on all pods.
            pods = [
                pod
                for pod in world.pods
                if (mine := serving.get(pod_facts.name(pod)))
                and pod_facts.ready(pod)
                and adapter.of(mine.uid)
                and (one := mine.adapters.get(adapter.name))
                and one.digest
            ]
            result.append(adapter_service(world.owner, adapter.name))
            result.append(adapter_endpoints(world.owner, adapter.name, pods))
    names = {(body["kind"], body["metadata"]["name"]) for body in result}
    stale = [
        child
        for ref, child in world.children.items()
        if ADAPTER_LABEL in child["metadata"].get("labels", {}) and world.owner.owns(child) and ref not in names
    ]
    return result, tuple(stale)


def observed_status(
    world: World,
    resource: ModelDeployment,
    state: State,
    found: References,
    live: Object | None,
    size: Sizes,
    replicas: int,
) -> ModelDeploymentStatus:
    """The status, from the Deployment and from what the agents say of their engines."""
    spec, owner, old = resource.spec, world.owner, resource.status
    counts = (live or {}).get("status") or {}
    ready = int(counts.get("readyReplicas", 0))
    reported = adapters.statuses(world, resource, state, found)
    served = sum(adapter.state == "Ready" for adapter in reported)
    first, second = _ready_word(world, replicas, ready, counts), _adapters_word(reported)
    if replicas == 0 and spec.replicas and spec.gateway:
        idle = f"no request for {spec.gateway.idle_seconds} s: the next one starts the pods, and waits for them"
        first = second = ("True", "ScaledToZero", idle)
    footprint = known_footprint(world)
    estimate = memory(spec, footprint, world.gpu_memory) if footprint else old.memory
    return ModelDeploymentStatus(
        conditions=[
            condition(world, old.conditions, "Ready", *first),
            condition(world, old.conditions, "AdaptersReady", *second),
            condition(world, old.conditions, "Sized", *_sized_word(size)),
            *([condition(world, old.conditions, "Fits", *_fits_word(estimate))] if estimate else []),
        ],
        observed_generation=world.generation,
        replicas=int(counts.get("replicas", 0)),
        ready_replicas=ready,
        autoscaler=spec.autoscaling.scaler if spec.autoscaling else None,
        nodes=_nodes(world, spec.engine.nodes),
        selector=",".join(f"{key}={value}" for key, value in sorted(pod_labels(owner).items())),
        url=f"http://{owner.name}.{owner.namespace}.svc/v1",
        gateway=gateway.report(world, resource),
        memory=estimate,
        adapters=adapters.fitted(reported),
        adapters_summary=f"{served}/{len(reported)}",
    )


def _nodes(world: World, wanted: int) -> int | None:
    """Pods of a replica, also of one that is still to be removed."""
    other = world.children.get(("LeaderWorkerSet", deployment_name(world.owner)))
    before = int(other["spec"]["leaderWorkerTemplate"]["size"]) if other and world.owner.owns(other) else 1
    return max(wanted, before) if max(wanted, before) > 1 else None


def known_footprint(world: World) -> Footprint | None:
    """What an agent has measured of the model."""
    return next((agent.footprint for agent in world.agents.values() if agent.footprint), None)


def _ready_word(world: World, replicas: int, ready: int, counts: Object) -> Word:
    if replicas == 0:
        return "False", "ScaledToZero", "spec.replicas is 0"
    held = pod_facts.problem(world.pods)
    footprint = known_footprint(world)
    if held and footprint and footprint.quantization and pod_facts.crashed(world.pods, "engine"):
        held += (
            f". The model is quantised ({footprint.quantization}): where the engine lacks that for its device, name a "
            "model in a form that it serves (docs/export.md)"
        )
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


def _fits_word(estimate: ServingMemory) -> Word:
    match fits(estimate):
        case None:
            return "Unknown", "MemoryNotKnown", estimate.summary
        case True:
            return "True", "Fits", estimate.summary
        case _:
            return "False", "TooLarge", estimate.summary


def _sized_word(size: Sizes) -> Word:
    if size.lacking:
        return "False", size.reason, size.lacking
    return (
        "True",
        "Sized",
        f"ranks up to {size.max_lora_rank}, {size.max_loras} adapters in a batch, {size.max_cpu_loras} in memory",
    )


def _adapters_word(reported: list[AdapterStatus]) -> Word:
    for state, reason in (
        ("Failed", "AdapterFailed"),
        ("Waiting", "WaitingForReference"),
        ("Loading", "Loading"),
    ):
        found = [adapter for adapter in reported if adapter.state == state]
        if found:
            told = [f"{a.name}: {a.message or 'loading'}" for a in found[:NAMED]]
            return "False", reason, "; ".join([*told, *([f"and {len(found) - NAMED} more"] if found[NAMED:] else [])])
    return "True", "AdaptersReady", "every adapter is served" if reported else "there are none"


def _patience(state: State, status: ModelDeploymentStatus, settings: Settings) -> float:
    """When to look again. Each step of a rollout waits for the one before."""
    if any(one.trial and one.trial.state in ("Loading", "Promoting") for one in state.adapters):
        return ROLLOUT_SECONDS
    if any(one.trial and one.trial.state == "Running" for one in state.adapters):
        return settings.poll_seconds
    if any(c.reason == "ScaledToZero" and c.status == "True" for c in status.conditions):
        return settings.poll_seconds
    if any(adapter.previous for adapter in state.adapters) and all(a.state != "Failed" for a in status.adapters):
        return ROLLOUT_SECONDS
    return WAIT_SECONDS if _settled(status) else settings.poll_seconds


def _settled(status: ModelDeploymentStatus) -> bool:
    return (
        all(c.status == "True" for c in status.conditions if c.type in ("Ready", "AdaptersReady"))
        and status.ready_replicas == status.replicas
    )
