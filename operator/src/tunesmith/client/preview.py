"""What a resource would become, without a cluster: its plan, its memory, and its pods."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from tunesmith.children.inspect import inspect_job
from tunesmith.children.job import headless_service, train_job
from tunesmith.children.meta import Object, Owner
from tunesmith.children.plan import plan_config_map
from tunesmith.client.checking import told
from tunesmith.client.errors import Invalid
from tunesmith.client.resources import AnyResource, FineTuneJob, InferenceJob, MergeJob, ModelDeployment
from tunesmith.decide import modeldeployment, preflight
from tunesmith.decide.jobkinds import KINDS
from tunesmith.decide.references import sources
from tunesmith.decide.world import World
from tunesmith.fetching import FetchError
from tunesmith.inspecting.files import open_files
from tunesmith.inspecting.model import inspect
from tunesmith.inspecting.refusal import Refusal
from tunesmith.settings import Settings
from tunesmith.training import architecture, capabilities
from tunesmith.training.location import locate
from tunesmith.training.matrix import PlanError
from tunesmith.training.memory import Choice
from tunesmith.training.plan import AnyPlan, Job
from tunesmith.training.planning import train_plan
from tunesmith.training.report import Inspection

UID = "00000000-0000-0000-0000-000000000000"
FETCHED = frozenset({"hf", "https", "s3", "gs", "oci"})


@dataclass(frozen=True)
class Preview:
    """What the operator would make."""

    plan: AnyPlan | None = None
    """What the trainer would read. None for a deployment."""
    memory: Choice | None = None
    notes: list[str] = field(default_factory=list)
    """What is not known, and why."""
    objects: list[Object] = field(default_factory=list)
    """The Kubernetes objects, pods' templates included."""


def preview(
    resource: AnyResource,
    settings: Settings,
    namespace: str,
    config: Mapping[str, Any] | None = None,
    schemes: Collection[str] = FETCHED,
) -> Preview:
    """What would be made. `config`: the model's config.json where its address cannot be read from here. `schemes`: of
    the addresses that are. Raises Invalid for what can be known from the spec to be impossible.
    """
    owner = Owner(resource.kind, resource.metadata.namespace or namespace, resource.name, UID)
    resolved, notes = _resolved(resource, settings)
    try:
        match resource:
            case FineTuneJob():
                return _train(resource, owner, resolved, settings, notes, lambda uri: look(uri, config, schemes))
            case MergeJob() | InferenceJob():
                job = Job(namespace=owner.namespace, name=owner.name, uid=UID)
                kind = KINDS[resource.kind]
                plan = kind.plan(job, resource.spec, resolved, settings.default_store)
                pods = kind.job(owner, 1, resource.spec, plan, settings, None)
                return Preview(plan, None, notes, [plan_config_map(owner, 1, plan), pods])
            case ModelDeployment():
                return _serve(resource, owner, settings, notes)
    except PlanError as error:
        raise Invalid.fields(f"{resource.kind} {resource.name}", [str(error)]) from error
    except ValidationError as error:  # what only the API server's rules would have found
        raise Invalid.fields(f"{resource.kind} {resource.name}", told(error)) from error


def _resolved(resource: AnyResource, settings: Settings) -> tuple[dict[tuple[str, str], str], list[str]]:
    """Stand-ins for artefacts that are not made yet."""
    found, notes = {}, []
    for _, source, kind in sources(resource):
        if ref := source.reference:
            found[ref] = _stand_in(settings, kind, ref[1])
            notes.append(f"{ref[0]} {ref[1]} stands as {found[ref]} until it is done")
    return found, notes


def _train(
    resource: FineTuneJob,
    owner: Owner,
    resolved: Mapping[tuple[str, str], str],
    settings: Settings,
    notes: list[str],
    looked: Callable[[str], tuple[Inspection | None, str]],
) -> Preview:
    spec = resource.spec
    job = Job(namespace=owner.namespace, name=owner.name, uid=UID)
    plan = train_plan(job, spec, resolved, settings.default_store)
    seen, why = looked(plan.model.uri)
    memory = preflight.choice(spec, plan, seen, None) if seen else None
    if memory:
        plan = plan.model_copy(update={"distribution": memory.distribution})
        if memory.fits is None:
            notes.append("how much memory a device has is not known: set spec.memory.perDevice, or resources.limits")
    else:
        notes.append(f"no estimate of memory: {why or (seen.reason if seen else '')}")
    objects = [plan_config_map(owner, 1, plan)]
    if spec.memory.check != "Disabled":
        objects.insert(0, inspect_job(owner, spec, plan, settings))
    if plan.world_size > 1:
        objects.append(headless_service(owner, 1))
    return Preview(plan, memory, notes, [*objects, train_job(owner, 1, spec, plan, settings, None)])


def look(uri: str, config: Mapping[str, Any] | None, schemes: Collection[str]) -> tuple[Inspection | None, str]:
    """What the model is, or why that cannot be told from here."""
    hint = "--model-config PATH, or the console's field for it, takes a copy of the model's config.json"
    if config is not None:
        found = architecture.facts(config)
        base = capabilities.base_of(config) or capabilities.FULL_PRECISION
        return Inspection(facts=found.facts, reason=found.reason, base=base), found.reason
    if not locate(uri).fetch:
        return None, f"{uri} is inside the cluster; {hint}"
    if urlsplit(uri).scheme not in schemes:
        return None, f"{uri} is not read from here; {hint}"
    try:
        files = open_files(uri, {})
        return (inspect(uri, files), "") if files else (None, f"{uri} is an archive")
    except (FetchError, Refusal, OSError) as error:
        return None, f"{error}; {hint}"


def _serve(resource: ModelDeployment, owner: Owner, settings: Settings, notes: list[str]) -> Preview:
    """By the operator's own decision, in a world where every job that is referred to is done."""
    body: dict[str, Any] = {**resource.manifest(), "status": {}}
    body["metadata"] = {**body["metadata"], "namespace": owner.namespace, "uid": UID, "generation": 1}
    done = {ref: _done(*ref, kind, settings) for _, source, kind in sources(resource) if (ref := source.reference)}
    world = World(resource=body, now=datetime.now(UTC), references=done, token="<random>")
    decision = modeldeployment.decide(world, settings)
    return Preview(None, None, notes, [*decision.create, *decision.apply] if decision else [])


def _done(kind: str, name: str, made: str, settings: Settings) -> Object:
    """A job of this name that has made what is wanted of it."""
    condition = {
        "type": "Succeeded", "status": "True", "reason": "Completed", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1,
    }  # fmt: skip
    artifact = {"kind": made, "uri": _stand_in(settings, made, name), "digest": ""}
    status = {"conditions": [condition], "artifact": artifact}
    return {"kind": kind, "metadata": {"name": name}, "spec": {}, "status": status}


def _stand_in(settings: Settings, made: str, name: str) -> str:
    return f"{settings.default_store}/{made}/of-{name}"
