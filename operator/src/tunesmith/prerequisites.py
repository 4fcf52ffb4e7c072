"""What a spec names and must be there: claims, Secrets, ConfigMaps. Read from the API server, for people to mend."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from tunesmith.api.finetunejob import FineTuneJob
from tunesmith.api.job import PodTemplate
from tunesmith.api.kinds import AnyResource
from tunesmith.api.modeldeployment import ModelDeployment
from tunesmith.decide.references import sources
from tunesmith.kube.client import Client
from tunesmith.training.location import locate

CLAIM = "PersistentVolumeClaim"


@dataclass(frozen=True)
class Wanted:
    """An object that a field of the spec names."""

    field: str
    kind: str
    name: str
    key: str | None = None
    """The key that a ConfigMap must have."""
    pods: int = 1
    """Pods that mount a claim at the same time."""
    writable: bool = False


async def missing(client: Client, namespace: str, resource: AnyResource, default_store: str) -> tuple[str, ...]:
    """Messages about what the spec names and is not there, or cannot be used as the spec says."""
    found = await asyncio.gather(
        *(_look_for(client, namespace, one) for one in dict.fromkeys(wanted(resource, default_store)))
    )
    return tuple(message for message in found if message)


def wanted(resource: AnyResource, default_store: str) -> Iterator[Wanted]:
    """All that the spec names."""
    nodes = resource.spec.nodes if isinstance(resource, FineTuneJob) else 1
    named = [(field, source.uri, source.secret_ref) for field, source, _ in sources(resource)]
    if not isinstance(resource, ModelDeployment):
        named += [(field, one.uri, one.secret_ref) for field, one in resource.spec.all_datasets()]
    for field, uri, secret in named:
        if uri:
            place = locate(uri)
            if place.claim:
                yield Wanted(field, CLAIM, place.claim, pods=nodes)
            if place.config_map:
                yield Wanted(field, "ConfigMap", place.config_map, key=uri.rsplit("/", 1)[1])
        if secret:
            yield Wanted(field, "Secret", secret.name)
    if isinstance(resource, ModelDeployment):
        if keys := resource.spec.api_key_secret_ref:
            yield Wanted("spec.apiKeySecretRef", "Secret", keys.name)
        if (cache := resource.spec.model_cache) and cache.claim:
            yield Wanted(
                "spec.modelCache.claim", CLAIM, cache.claim.name, pods=resource.spec.engine.nodes, writable=True
            )
        return
    if isinstance(resource, FineTuneJob):
        for number, tracker in enumerate(resource.spec.training.report_to):
            if tracker.secret_ref:
                yield Wanted(f"spec.training.reportTo[{number}]", "Secret", tracker.secret_ref.name)
    for number, destination in enumerate(resource.spec.output.push):
        if destination.secret_ref:
            yield Wanted(f"spec.output.push[{number}]", "Secret", destination.secret_ref.name)
    field = "spec.output.uri" if resource.spec.output.uri else "the default store"
    claim = locate(resource.spec.output.uri or default_store).claim or ""
    yield Wanted(field, CLAIM, claim, pods=nodes, writable=True)
    if isinstance(resource, FineTuneJob) and (storage := resource.spec.checkpoint.storage):
        yield Wanted("spec.checkpoint.storage", CLAIM, locate(storage).claim or "", pods=nodes, writable=True)
    yield from _of_pods(resource.spec.pod_template)


def _of_pods(template: PodTemplate) -> Iterator[Wanted]:
    for name in template.image_pull_secrets:
        yield Wanted("spec.podTemplate.imagePullSecrets", "Secret", name)
    for number, volume in enumerate(template.volumes):
        field = f"spec.podTemplate.volumes[{number}]"
        for kind, part, key in (
            ("Secret", "secret", "secretName"),
            ("ConfigMap", "configMap", "name"),
            (CLAIM, "persistentVolumeClaim", "claimName"),
        ):
            body = volume.get(part)
            if isinstance(body, dict) and body.get(key) and not body.get("optional"):
                yield Wanted(field, kind, str(body[key]))
    for variable in template.env:
        for kind, part in (("Secret", "secretKeyRef"), ("ConfigMap", "configMapKeyRef")):
            body = (variable.value_from or {}).get(part)
            if isinstance(body, dict) and body.get("name") and not body.get("optional"):
                yield Wanted(f"spec.podTemplate.env[{variable.name}]", kind, str(body["name"]))


async def _look_for(client: Client, namespace: str, one: Wanted) -> str | None:
    absent = f"{one.field}: {one.kind} {one.name} does not exist: create it in namespace {namespace}"
    if one.kind == "Secret":  # its content is not ours to read
        return None if await client.exists(one.kind, namespace, one.name) else absent
    found = await client.get(one.kind, namespace, one.name)
    if found is None:
        return absent
    if one.kind == CLAIM:
        return refusal(one, found["spec"].get("accessModes", []))
    keys = [*(found.get("data") or {}), *(found.get("binaryData") or {})]
    if one.key is None or one.key in keys:
        return None
    return f"{one.field}: ConfigMap {one.name} has no key {one.key}; it has {', '.join(keys) or 'none'}"


def refusal(one: Wanted, modes: list[str]) -> str | None:
    """A message if a claim with these access modes cannot be used as it is wanted."""
    if one.writable and set(modes) == {"ReadOnlyMany"}:
        return f"{one.field}: {CLAIM} {one.name} allows ReadOnlyMany only, but it is written to"
    enough = {"ReadWriteMany"} if one.writable else {"ReadWriteMany", "ReadOnlyMany"}
    if one.pods > 1 and not enough & set(modes):
        return (
            f"{one.field}: {CLAIM} {one.name} allows {', '.join(modes)}, but nodes: {one.pods} needs "
            f"{' or '.join(sorted(enough))}: use a claim that has it, or one node"
        )
    return None
