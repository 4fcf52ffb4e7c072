"""The only reader: everything that a decision about one resource may depend on."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import aiohttp
from pydantic import ValidationError

from tunesmith.api.finetunejob import FineTuneJob
from tunesmith.api.mergejob import MergeJob
from tunesmith.api.modeldeployment import ModelDeployment
from tunesmith.children.meta import ATTEMPT_LABEL, Object, Owner, job_name, plan_name
from tunesmith.children.serving import adapters_name, admin_name, deployment_name
from tunesmith.decide import job as jobs
from tunesmith.decide import pods as pod_facts
from tunesmith.decide.references import sources
from tunesmith.decide.world import Ref, World
from tunesmith.kube.client import Client
from tunesmith.serving.contract import AGENT_PORT, AgentStatus
from tunesmith.settings import Settings
from tunesmith.training.location import locate
from tunesmith.training.report import PORT, Report

MODELS: dict[str, type[FineTuneJob] | type[MergeJob] | type[ModelDeployment]] = {
    "FineTuneJob": FineTuneJob,
    "MergeJob": MergeJob,
    "ModelDeployment": ModelDeployment,
}
ASK_SECONDS = 2.0


class Observer:
    """Reads from the API server, from trainers and from agents."""

    def __init__(self, client: Client, http: aiohttp.ClientSession, settings: Settings) -> None:
        self._client, self._http, self._settings = client, http, settings

    async def observe(self, kind: str, namespace: str, name: str) -> World | None:
        """The world around a resource. None: it is not there, or over, and nothing else was read."""
        resource = await self._client.get(kind, namespace, name)
        if resource is None or "deletionTimestamp" in resource["metadata"]:
            return None
        parsed = MODELS[kind].model_validate(resource)
        if not isinstance(parsed, ModelDeployment) and jobs.terminal(parsed.status):
            return None
        owner = Owner.of(resource)
        children, pods, references, (missing, store_exists) = await asyncio.gather(
            self._children(owner),
            self._client.list("Pod", namespace, owner.selector),
            self._references(namespace, parsed),
            self._missing(namespace, parsed),
        )
        pods.sort(key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
        report, agents = await asyncio.gather(self._report(kind, pods), self._agents(kind, pods))
        return World(
            resource=resource,
            now=datetime.now(UTC),
            children=children,
            pods=tuple(pods),
            references=references,
            missing=missing,
            store_exists=store_exists,
            report=report,
            agents=agents,
            token=secrets.token_urlsafe(32),
        )

    async def admin_token(self, namespace: str, deployment: str) -> str:
        """The token for the agents of a ModelDeployment."""
        owner = Owner("ModelDeployment", namespace, deployment, "")
        secret = await self._client.get("Secret", namespace, admin_name(owner))
        return base64.b64decode(secret["data"]["token"]).decode() if secret else ""

    async def _children(self, owner: Owner) -> dict[Ref, Object]:
        if owner.kind == "ModelDeployment":
            names = [
                ("Deployment", deployment_name(owner)),
                ("Service", owner.name),
                ("ConfigMap", adapters_name(owner)),
                ("Secret", admin_name(owner)),
                ("PodDisruptionBudget", owner.name),
            ]
            found: list[Object] = []
        else:
            found = await self._client.list("Job", owner.namespace, owner.selector)
            attempt = max((int(job["metadata"]["labels"][ATTEMPT_LABEL]) for job in found), default=1)
            names = [("ConfigMap", plan_name(owner)), ("Service", job_name(owner, attempt))]
            if not found:
                names.append(("Job", job_name(owner, attempt)))
        got = await asyncio.gather(*(self._client.get(kind, owner.namespace, name) for kind, name in names))
        result = {(job["kind"], job["metadata"]["name"]): job for job in found}
        return result | {ref: live for ref, live in zip(names, got, strict=True) if live is not None}

    async def _references(
        self, namespace: str, resource: FineTuneJob | MergeJob | ModelDeployment
    ) -> dict[Ref, Object | None]:
        refs = list(dict.fromkeys(ref for _, source, _ in sources(resource) if (ref := source.reference)))
        found = await asyncio.gather(*(self._client.get(kind, namespace, name) for kind, name in refs))
        return dict(zip(refs, found, strict=True))

    async def _missing(
        self, namespace: str, resource: FineTuneJob | MergeJob | ModelDeployment
    ) -> tuple[tuple[str, ...], bool]:
        """Messages about what the spec names and is not there; and whether the default store's claim is."""
        store = locate(self._settings.default_store).claim or ""
        wanted: list[tuple[str, str, str, str | None]] = []
        for field, source in [*((field, source) for field, source, _ in sources(resource)), *_datasets(resource)]:
            if source.uri:
                place = locate(source.uri)
                if place.claim:
                    wanted.append((field, "PersistentVolumeClaim", place.claim, None))
                if place.config_map:
                    wanted.append((field, "ConfigMap", place.config_map, source.uri.rsplit("/", 1)[1]))
            if source.secret_ref:
                wanted.append((field, "Secret", source.secret_ref.name, None))
        if not isinstance(resource, ModelDeployment):
            field = "spec.output.uri" if resource.spec.output.uri else "the default store"
            claim = locate(resource.spec.output.uri or self._settings.default_store).claim or ""
            wanted.append((field, "PersistentVolumeClaim", claim, None))
        checks = (self._look_for(namespace, *one) for one in dict.fromkeys(wanted))
        messages, store_exists = await asyncio.gather(
            asyncio.gather(*checks), self._client.exists("PersistentVolumeClaim", namespace, store)
        )
        return tuple(message for message in messages if message), store_exists

    async def _look_for(self, namespace: str, field: str, kind: str, name: str, key: str | None) -> str | None:
        if key is not None:
            found = await self._client.get(kind, namespace, name)
            if found is None:
                return f"{field}: {kind} {name} does not exist: create it in namespace {namespace}"
            keys = [*(found.get("data") or {}), *(found.get("binaryData") or {})]
            return (
                None if key in keys else f"{field}: {kind} {name} has no key {key}; it has {', '.join(keys) or 'none'}"
            )
        if await self._client.exists(kind, namespace, name):
            return None
        return f"{field}: {kind} {name} does not exist: create it in namespace {namespace}"

    async def _report(self, kind: str, pods: list[Object]) -> Report | None:
        """Progress, from rank 0 of the newest attempt."""
        if kind == "ModelDeployment":
            return None
        index = "batch.kubernetes.io/job-completion-index"
        for pod in reversed(pods):
            if pod["metadata"].get("annotations", {}).get(index) == "0" and pod_facts.running(pod):
                body = await self._ask(pod, PORT, "/progress")
                try:
                    return Report.model_validate(body) if body else None
                except ValidationError:
                    return None
        return None

    async def _agents(self, kind: str, pods: list[Object]) -> dict[str, AgentStatus]:
        if kind != "ModelDeployment":
            return {}
        asked = [
            pod for pod in pods if pod.get("status", {}).get("podIP") and "deletionTimestamp" not in pod["metadata"]
        ]
        bodies = await asyncio.gather(*(self._ask(pod, AGENT_PORT, "/status") for pod in asked))
        return {
            pod_facts.name(pod): AgentStatus.model_validate(body)
            for pod, body in zip(asked, bodies, strict=True)
            if body
        }

    async def _ask(self, pod: Object, port: int, path: str) -> Any:
        """JSON from a pod, or None where it does not answer: it may be starting, or gone."""
        url = f"http://{pod['status']['podIP']}:{port}{path}"
        try:
            async with self._http.get(url, timeout=aiohttp.ClientTimeout(total=ASK_SECONDS)) as response:
                return await response.json() if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None


def _datasets(resource: FineTuneJob | MergeJob | ModelDeployment) -> Iterator[tuple[str, Any]]:
    if isinstance(resource, FineTuneJob):
        for number, dataset in enumerate(resource.spec.datasets):
            yield f"spec.datasets[{number}]", dataset
