"""The adapters of a ModelDeployment: which should be served where in which version, and what became of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tunesmith.api.job import JobStatus
from tunesmith.api.modeldeployment import (
    MAX_ADAPTERS,
    Adapter,
    AdapterStatus,
    Canary,
    CanaryStatus,
    ModelDeployment,
    PodAdapter,
)
from tunesmith.children.meta import ROLE_LABEL
from tunesmith.children.serving import WORKER, service_name
from tunesmith.decide import canary as trials
from tunesmith.decide import pods as pod_facts
from tunesmith.decide.references import References, succeeded_with, wrong_kind
from tunesmith.decide.world import World
from tunesmith.serving.contract import (
    ADAPTERS_FOLDER,
    ALL,
    DesiredAdapter,
    ObservedAdapter,
    Rejected,
    Smoke,
    State,
    Trial,
    Version,
    weight,
)
from tunesmith.serving.routes import canary_name
from tunesmith.training.location import SECRETS, locate
from tunesmith.training.planning import address

# etcd takes 1.5 MiB for a resource. The spec may be as long, and its fields' managers.
MAX_STATUS_BYTES = 600_000


@dataclass(frozen=True)
class Pod:
    """A pod and what its agent says."""

    name: str
    uid: str
    restarts: int = 0
    up: bool = True
    """Whether its engine serves. Also where the agent cannot be asked: nothing is taken for done that is not known."""
    adapters: Mapping[str, ObservedAdapter] = field(default_factory=dict)

    def serves(self, name: str, uri: str) -> bool:
        """Whether it serves this version."""
        one = self.adapters.get(name)
        return one is not None and one.uri == uri and one.state == "Ready"

    def fails(self, name: str, uri: str) -> bool:
        """Whether its last try to serve this version came to nothing."""
        one = self.adapters.get(name)
        return one is not None and one.uri == uri and one.state == "Failed"

    def refuses(self, name: str, uri: str, max_rank: int) -> ObservedAdapter | None:
        """Why it will never serve this version, if so. A pod that is yet to get a larger engine does not count."""
        one = self.adapters.get(name)
        if one is None or not self.fails(name, uri) or not one.permanent:
            return None
        return None if one.rank and one.rank <= max_rank else one


def pods(world: World) -> list[Pod]:
    """The pods that are there to stay. What an agent of another pod says under the same address does not count."""
    result = []
    for pod in world.pods:
        if not pod_facts.running(pod) or pod["metadata"].get("labels", {}).get(ROLE_LABEL) == WORKER:
            continue
        name, uid = pod_facts.name(pod), str(pod["metadata"]["uid"])
        agent = world.agents.get(name)
        counts = [c["restartCount"] for c in pod["status"].get("containerStatuses", ()) if c["name"] == "engine"]
        restarts = int(counts[0]) if counts else 0
        if agent is None or agent.pod_uid not in ("", uid):
            result.append(Pod(name, uid, restarts))
        else:
            observed = {one.name: one for one in agent.adapters}
            result.append(Pod(name, uid, restarts, agent.engine == "Ready", observed))
    return result


def wanted(world: World, resource: ModelDeployment) -> list[Adapter]:
    """The adapters of the spec, then those of the jobs that its selector finds, by name, as many as there may be."""
    spec = resource.spec
    taken = {spec.model_name, *(adapter.name for adapter in spec.adapters)}
    found = sorted(
        str(job["metadata"]["name"])
        for job in world.selected
        if succeeded_with(JobStatus.model_validate(job.get("status") or {}), "adapters")
    )
    refs = [{"name": name, "fineTuneJobRef": {"name": name}} for name in found if name not in taken]
    room = MAX_ADAPTERS - len(spec.adapters)
    return [*spec.adapters, *(Adapter.model_validate(ref) for ref in refs[:room])]


def desired(
    world: World,
    resource: ModelDeployment,
    found: References,
    old: Mapping[str, DesiredAdapter],
    max_rank: int,
) -> list[DesiredAdapter]:
    """What the pods should serve, given what they should serve so far."""
    there, result = pods(world), []
    step = resource.spec.adapter_rollout.max_unavailable
    for adapter in wanted(world, resource):
        before = old.get(adapter.name)
        uri = _uri(adapter, found, before)
        if uri is None:
            continue
        new = _desired(adapter, uri)
        trial = _trial(world, resource, adapter, uri, found, old, there, max_rank)
        if trial and trial.state in ("Promoting", "Promoted"):
            new = new.with_version(trial.version)
        if before is not None:
            new = rolled(new, before, there, step, world.generation, max_rank)
        result.append(new.model_copy(update={"placed": placed(new, adapter.replicas, there), "trial": trial}))
        if trial and trial.state in ("Loading", "Running", "Promoting"):
            hidden = DesiredAdapter(name=canary_name(adapter.name), smoke=new.smoke, **trial.version.__dict__)
            result.append(hidden.model_copy(update={"placed": placed(hidden, adapter.replicas, there)}))
    return result


def tried(resource: ModelDeployment) -> list[Adapter]:
    """The versions that the spec has tried on a part of the requests, under the names that engines know them by."""
    if resource.spec.gateway is None:
        return []
    return [_tried(adapter, adapter.canary) for adapter in resource.spec.adapters if adapter.canary]


def _tried(adapter: Adapter, canary: Canary) -> Adapter:
    source = {"uri": canary.uri, "fine_tune_job_ref": canary.fine_tune_job_ref, "secret_ref": canary.secret_ref}
    return adapter.model_copy(update={"name": canary_name(adapter.name), "canary": None, **source})


def _trial(
    world: World,
    resource: ModelDeployment,
    adapter: Adapter,
    stable: str,
    found: References,
    old: Mapping[str, DesiredAdapter],
    there: Sequence[Pod],
    max_rank: int,
) -> Trial | None:
    """What is to be known of the adapter's canary, if it has one."""
    if adapter.canary is None or resource.spec.gateway is None or wrong_kind(found, adapter.canary, "", "adapters"):
        return None
    before, hidden = old.get(adapter.name), old.get(canary_name(adapter.name))
    known = before.trial if before else None
    if adapter.canary.reference in found.waiting:
        return known
    version = _version(_tried(adapter, adapter.canary), address(adapter.canary, found.addresses))
    refusal = None
    if hidden:
        refused = (pod.refuses(hidden.name, version.uri, max_rank) for pod in _mine(hidden, there))
        refusal = next(((one.reason or "LoadFailed", one.message or "") for one in refused if one), None)
    if before and (rejected := before.rejected) and rejected.uri == version.uri:
        refusal = (rejected.reason, rejected.message) if rejected.generation == world.generation else refusal
    replaced = before is not None and before.previous is None and _everywhere(before, version.uri, there)
    return trials.follow(
        adapter.canary,
        version,
        stable,
        known,
        adapter=adapter.name,
        serving=hidden is not None and _everywhere(hidden, version.uri, there),
        refusal=refusal,
        replaced=replaced,
        gateways=world.gateways.values(),
        now=world.now,
        stamp=world.stamp,
    )


def _mine(adapter: DesiredAdapter, there: Sequence[Pod]) -> list[Pod]:
    """The pods that should serve an adapter."""
    return [pod for pod in there if adapter.placed is None or weight(adapter.name, pod.uid) <= adapter.placed]


def _everywhere(adapter: DesiredAdapter, uri: str, there: Sequence[Pod]) -> bool:
    """Whether all of them serve this version."""
    mine = _mine(adapter, there)
    return bool(mine) and all(pod.serves(adapter.name, uri) for pod in mine)


def _uri(adapter: Adapter, found: References, old: DesiredAdapter | None) -> str | None:
    """Where the adapter is; None: nowhere yet. What was served under its name is served on while the job that it
    refers to is away or runs anew: clearing up jobs takes nothing out of service.
    """
    if wrong_kind(found, adapter, "", "adapters"):
        return None
    if adapter.reference in found.waiting:
        return old.uri if old else None
    return address(adapter, found.addresses)


def _version(adapter: Adapter, uri: str) -> Version:
    place = locate(uri)
    return Version(
        uri=uri,
        # A fetched adapter lies beside the agent's own copies, which outlive the agent's container.
        path=f"{ADAPTERS_FOLDER}/.fetched/{place.path.rsplit('/', 1)[1]}" if place.fetch else place.path,
        fetch=place.fetch,
        secret=f"{SECRETS}/{adapter.secret_ref.name}" if adapter.secret_ref else None,
    )


def _desired(adapter: Adapter, uri: str) -> DesiredAdapter:
    smoke = adapter.smoke
    wanted = smoke and Smoke(
        prompt=smoke.prompt, max_tokens=smoke.max_tokens, contains=smoke.contains, differs=smoke.differs_from_base
    )
    required = adapter.required == "Always"
    return DesiredAdapter(name=adapter.name, required=required, smoke=wanted, **_version(adapter, uri).__dict__)


def rolled(
    new: DesiredAdapter, old: DesiredAdapter, there: Sequence[Pod], step: int, generation: int, max_rank: int
) -> DesiredAdapter:
    """The next step from the old version to the new one: a few pods at a time, and back where one refuses it."""
    rejected = old.rejected
    fits_now = rejected and rejected.rank and rejected.rank <= max_rank
    if rejected and rejected.uri == new.uri and rejected.generation == generation and not fits_now:
        return new.with_version(old.version, rejected=rejected)
    if old.uri == new.uri and old.previous is None:
        return new
    previous, updated = old.previous or old.version, old.updated or ""
    if old.uri != new.uri:
        # What is served now stays until it is a pod's turn. A rollout that another one overtakes is begun anew.
        updated = ""
        if previous.uri == new.uri:
            return new
    up = [pod for pod in there if pod.up and (old.placed is None or weight(new.name, pod.uid) <= old.placed)]
    order = sorted(((weight(new.name, pod.uid), pod) for pod in up), key=lambda one: one[0])
    turned = [pod for mine, pod in order if mine <= updated]
    for pod in turned:
        if refusal := pod.refuses(new.name, new.uri, max_rank):
            why = Rejected(
                uri=new.uri,
                generation=generation,
                reason=refusal.reason or "LoadFailed",
                message=f"pod {pod.name}: {refusal.message}",
                rank=refusal.rank,
            )
            return new.with_version(previous, rejected=why)
    busy = sum(not pod.serves(new.name, new.uri) for pod in turned)
    waiting = [mine for mine, _ in order if mine > updated]
    if not waiting and not busy:
        return new
    free = waiting[: max(0, step - busy)]
    return new.model_copy(update={"previous": previous, "updated": free[-1] if free else updated})


def placed(adapter: DesiredAdapter, replicas: int | None, there: Sequence[Pod]) -> str | None:
    """Up to which weight pods serve an adapter, so that `replicas` of them do. A pod that is to serve it no more
    goes on until another has taken its place.
    """
    if replicas is None:
        return None
    weights = sorted(((weight(adapter.name, pod.uid), pod) for pod in there), key=lambda one: one[0])
    serving = [mine for mine, pod in weights if (one := pod.adapters.get(adapter.name)) and one.digest]
    if len(serving) >= replicas:
        return serving[replicas - 1]
    if len(weights) < replicas:
        return ALL
    return max([weights[replicas - 1][0], *serving])


def statuses(world: World, resource: ModelDeployment, state: State, found: References) -> list[AdapterStatus]:
    """One per adapter that is wanted. An adapter is Ready when every pod that should serves its newest version."""
    there = pods(world)
    given = {adapter.name: adapter for adapter in state.adapters}
    fields = {id(adapter): f"spec.adapters[{number}]" for number, adapter in enumerate(resource.spec.adapters)}
    result = []
    for adapter in wanted(world, resource):
        wrong = wrong_kind(found, adapter, fields.get(id(adapter), ""), "adapters")
        waits = found.waiting.get(adapter.reference) if adapter.reference else None
        one = given.get(adapter.name)
        if wrong:
            result.append(AdapterStatus(name=adapter.name, state="Failed", reason="WrongKind", message=wrong))
        elif one is None:
            result.append(
                AdapterStatus(name=adapter.name, state="Waiting", reason="WaitingForReference", message=waits)
            )
        else:
            url = f"http://{service_name(world.owner, one.name)}.{world.owner.namespace}.svc/v1"
            status = _status(one, there).model_copy(
                update={"url": url if adapter.replicas else None, "canary": _canary(world, adapter, one, found)}
            )
            if status.message is None and waits:
                message = f"{waits}; what it made before is served"
                status = status.model_copy(update={"reason": "WaitingForReference", "message": message})
            result.append(status)
    return result


def fitted(reported: list[AdapterStatus]) -> list[AdapterStatus]:
    """What of the adapters' status fits into the resource: details of pods go first, then long messages."""
    result = reported
    for details, length, uri in ((True, 2048, True), (False, 2048, True), (False, 200, True), (False, 200, False)):
        result = [
            one.model_copy(
                update={
                    "pods": one.pods if details else [],
                    "message": one.message and one.message[:length],
                    "uri": one.uri if uri else None,
                }
            )
            for one in reported
        ]
        if sum(len(one.model_dump_json(by_alias=True, exclude_none=True)) for one in result) <= MAX_STATUS_BYTES:
            break
    return result


def _canary(world: World, adapter: Adapter, given: DesiredAdapter, found: References) -> CanaryStatus | None:
    """What is to be said of the version that is tried."""
    canary, trial = adapter.canary, given.trial
    if canary is None:
        return None
    if trial is None:
        wrong = wrong_kind(found, canary, f"the canary of adapter {adapter.name}", "adapters")
        waits = found.waiting.get(canary.reference) if canary.reference else None
        word = ("RolledBack", "WrongKind", wrong) if wrong else ("Loading", "WaitingForReference", waits)
        return CanaryStatus(state=word[0], reason=word[1], message=word[2])
    counts = trials.counted(world.gateways.values(), trials.key(adapter.name, trial)).new
    return CanaryStatus(
        uri=trial.version.uri,
        state=trial.state,
        percent=trials.percent(canary, trial),
        requests=counts.requests if trial.state == "Running" else 0,
        errors=counts.errors if trial.state == "Running" else 0,
        reason=trial.reason,
        message=trial.message or None,
    )


def _status(adapter: DesiredAdapter, there: Sequence[Pod]) -> AdapterStatus:
    name, uri = adapter.name, adapter.uri
    mine = _mine(adapter, there)
    ready, late = list[Pod](), list[Pod]()
    for pod in mine:
        (ready if pod.serves(name, uri) else late).append(pod)
    failed = [_detail(pod, adapter) for pod in late if pod.fails(name, uri)]
    status = AdapterStatus(
        name=name,
        state="Ready" if mine and len(ready) == len(mine) else "Loading",
        uri=uri,
        digest=next((f"sha256:{d}" for pod in ready if (d := pod.adapters[name].digest)), None),
        desired_pods=len(mine),
        ready_pods=len(ready),
        failed_pods=len(failed),
        attempts=max((one.attempts for one in failed), default=0),
        next_retry=min((one.next_retry for one in failed if one.next_retry), default=None),
        pods=[_detail(pod, adapter) for pod in late[:16]],
    )
    word: dict[str, str | None]
    if adapter.rejected:
        kept = f"{adapter.rejected.message}; {uri} is served on. Change the spec to try again"
        word = {"state": "Failed", "reason": "RolledBack", "message": f"{adapter.rejected.uri} was taken back: {kept}"}
    elif failed:
        word = {"state": "Failed", "reason": failed[0].reason, "message": f"pod {failed[0].pod}: {failed[0].message}"}
    elif adapter.previous and adapter.updated is not None:
        word = {"reason": "RollingOut", "message": f"{len(ready)} of {len(mine)} pods serve {uri}"}
    else:
        word = {"reason": next((reason for pod in late if (reason := _detail(pod, adapter).reason)), None)}
    message = word.get("message")
    return status.model_copy(update={**word, "message": message[:2048] if message else None})


def _detail(pod: Pod, adapter: DesiredAdapter) -> PodAdapter:
    """What is to be said of an adapter in a pod that does not serve it as it should."""
    one = pod.adapters.get(adapter.name)
    if one is None:
        word = "WaitingForEngine" if pod.up else "EngineStarting"
        return PodAdapter(pod=pod.name, restarts=pod.restarts, state="Loading", reason=word)
    new = one.uri == adapter.uri
    return PodAdapter(
        pod=pod.name,
        restarts=pod.restarts,
        state=one.state if new else "Loading",
        digest=f"sha256:{one.digest}" if one.digest else None,
        reason=one.reason if new else "OlderVersion",
        message=one.message[:1024] if one.message and new else None,
        attempts=one.attempts if new else 0,
        next_retry=one.next_retry if new else None,
    )
