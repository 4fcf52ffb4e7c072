"""The only reader: everything that a decision about one resource may depend on."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

import aiohttp
from pydantic import BaseModel

from tunesmith import prerequisites
from tunesmith.addresses import host_port
from tunesmith.api.finetunejob import FineTuneJob
from tunesmith.api.kinds import MODELS, AnyJob, AnyResource
from tunesmith.api.modeldeployment import ModelDeployment
from tunesmith.children.autoscaling import KINDS as SCALERS
from tunesmith.children.gateway import ROLE as GATEWAY
from tunesmith.children.gateway import engines_name, gateway_name
from tunesmith.children.inspect import ROLE, inspect_name
from tunesmith.children.job import QUEUE_LABEL
from tunesmith.children.meta import ATTEMPT_LABEL, ROLE_LABEL, Object, Owner, job_name
from tunesmith.children.push import ROLE as PUSH
from tunesmith.children.serving import ADAPTER_LABEL, WORKER, adapters_name, admin_name, deployment_name, own_names
from tunesmith.decide import attempts, lifecycle, preflight, pushing
from tunesmith.decide import pods as pod_facts
from tunesmith.decide.references import sources
from tunesmith.decide.world import Ref, World
from tunesmith.kube.client import ApiError, Client
from tunesmith.serving.contract import AGENT_PORT, AgentStatus
from tunesmith.serving.parallel import gpus
from tunesmith.serving.routes import GatewayStatus
from tunesmith.settings import Settings
from tunesmith.training.location import locate
from tunesmith.training.report import PORT, Report

ASK_SECONDS = 2.0
MAX_HEARD = 512
# Of a pod's answer. A thousand adapters, all of which have failed, take a few MiB.
MAX_BODY = 2**24
# MiB. https://github.com/NVIDIA/k8s-device-plugin/tree/main/docs/gpu-feature-discovery
GPU_MEMORY_LABEL = "nvidia.com/gpu.memory"

Answer = aiohttp.ClientResponse
Said = TypeVar("Said", bound=BaseModel)


class Observer:
    """Reads from the API server, from trainers and from agents."""

    def __init__(self, client: Client, http: aiohttp.ClientSession, settings: Settings) -> None:
        self._client, self._http, self._settings = client, http, settings
        self._heard: dict[str, tuple[str, AgentStatus]] = {}
        """Pod's UID -> (ETag, status) as its agent said last, the one that was asked longest ago first."""

    async def observe(self, kind: str, namespace: str, name: str) -> World | None:
        """The world around a resource. None: it is not there, or over, and nothing else was read."""
        resource = await self._client.get(kind, namespace, name)
        if resource is None or "deletionTimestamp" in resource["metadata"]:
            return None
        parsed = MODELS[kind].model_validate(resource)
        owner = Owner.of(resource)
        if not isinstance(parsed, ModelDeployment) and lifecycle.terminal(parsed.status):
            if not lifecycle.has_aftermath(parsed):
                seen = parsed.status.observed_generation == resource["metadata"]["generation"]
                return None if seen else World(resource, datetime.now(UTC))
            jobs = await self._client.list("Job", namespace, owner.selector)
            absent = set(pushing.job_names(parsed, owner)) - {job["metadata"]["name"] for job in jobs}
            others = await asyncio.gather(*(self._client.get("Job", namespace, name) for name in sorted(absent)))
            pods = await self._client.list("Pod", namespace, f"{owner.selector},{ROLE_LABEL}={PUSH}") if jobs else []
            pods.sort(key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
            children = {("Job", job["metadata"]["name"]): job for job in (*jobs, *others) if job}
            return World(resource, datetime.now(UTC), children, pods=tuple(pods))
        children = await self._children(owner, parsed)
        job = None if isinstance(parsed, ModelDeployment) else children.get(("Job", newest_job(owner, parsed)))
        pods, references, (selected, missing) = await asyncio.gather(
            self._client.list("Pod", namespace, owner.selector),
            self._references(namespace, parsed),
            self._selected(namespace, parsed),
        )
        if job is None:  # what a Job was made with is not looked for at each look at its progress
            missing += await prerequisites.missing(self._client, namespace, parsed, self._settings.default_store)
        pods.sort(key=lambda pod: str(pod["metadata"]["creationTimestamp"]))
        gateway_pods = [pod for pod in pods if pod["metadata"]["labels"].get(ROLE_LABEL) == GATEWAY]
        pods = [pod for pod in pods if pod not in gateway_pods]
        world = World(
            resource=resource,
            now=datetime.now(UTC),
            children=children,
            pods=tuple(pods),
            gateway_pods=tuple(gateway_pods),
            references=references | {("FineTuneJob", str(job["metadata"]["name"])): job for job in selected},
            selected=tuple(selected),
            missing=missing,
            token=secrets.token_urlsafe(32),
        )
        if isinstance(parsed, ModelDeployment):
            store = locate(self._settings.default_store).claim or ""
            store_exists, agents, gpu_memory = await asyncio.gather(
                self._client.exists("PersistentVolumeClaim", namespace, store),
                self._agents(pods),
                self._gpu_memory(parsed),
            )
            gateways = await self._gateways(world.gateway_pods)
            return replace(world, store_exists=store_exists, agents=agents, gpu_memory=gpu_memory, gateways=gateways)
        report, refusals, lost_nodes, gpu_memory, workload = await asyncio.gather(
            self._report(pods),
            self._refusals(job, pods),
            self._lost_nodes(pods),
            self._gpu_memory(parsed),
            self._workload(job),
        )
        return replace(
            world,
            report=report,
            refusals=refusals,
            lost_nodes=lost_nodes,
            gpu_memory=gpu_memory,
            workload=workload,
        )

    async def admin_tokens(self, namespace: str, deployment: str) -> list[str]:
        """The tokens for the agents of a ModelDeployment: the newest, then the one before."""
        owner = Owner("ModelDeployment", namespace, deployment, "")
        secret = await self._client.get("Secret", namespace, admin_name(owner))
        data = (secret or {}).get("data") or {}
        return [base64.b64decode(data[key]).decode() for key in ("token", "previous") if data.get(key)]

    async def _children(self, owner: Owner, resource: AnyResource) -> dict[Ref, Object]:
        if isinstance(resource, ModelDeployment):
            names = [
                ("Deployment", deployment_name(owner)),
                ("Service", owner.name),
                ("ConfigMap", adapters_name(owner)),
                ("Secret", admin_name(owner)),
                ("PodDisruptionBudget", owner.name),
            ]
            if max(resource.spec.engine.nodes, resource.status.nodes or 1) > 1:
                names += [("LeaderWorkerSet", deployment_name(owner)), ("NetworkPolicy", deployment_name(owner))]
            was = resource.status.gateway
            # What was made before something was refused is in no status.
            refused = any(one.reason == "Rejected" for one in resource.status.conditions)
            if resource.spec.gateway or was or refused:
                names += [("Deployment", gateway_name(owner)), ("PodDisruptionBudget", gateway_name(owner))]
                names.append(("Service", engines_name(owner)))
            if any(one and one.http_route for one in (resource.spec.gateway, was)):
                names.append(("HTTPRoute", owner.name))
            wanted = resource.spec.autoscaling.scaler if resource.spec.autoscaling else None
            scalers = dict.fromkeys((wanted, resource.status.autoscaler))
            names += [(SCALERS[scaler], owner.name) for scaler in scalers if scaler]
            names += own_names(owner, resource.spec.adapters)
            found: list[Object] = []
            if any(a.replicas for a in resource.spec.adapters) or any(a.url for a in resource.status.adapters):
                selector = f"{owner.selector},{ADAPTER_LABEL}"
                lists = await asyncio.gather(
                    *(self._client.list(kind, owner.namespace, selector) for kind in ("Service", "EndpointSlice"))
                )
                found = [child for one in lists for child in one]
        else:
            found = await self._client.list("Job", owner.namespace, owner.selector)
            number = attempts.number(resource.status)
            names = [("ConfigMap", job_name(owner, n)) for n in (number, number - 1) if n > 0]
            names += [("Service", job_name(owner, number)), ("Job", job_name(owner, number))]
            if not resource.status.attempts:
                names.append(("Job", inspect_name(owner)))
        result = {(one["kind"], one["metadata"]["name"]): one for one in found}
        names = [ref for ref in names if ref not in result]
        got = await asyncio.gather(*(self._client.get(kind, owner.namespace, name) for kind, name in names))
        return result | {ref: live for ref, live in zip(names, got, strict=True) if live is not None}

    async def _references(self, namespace: str, resource: AnyResource) -> dict[Ref, Object | None]:
        refs = list(dict.fromkeys(ref for _, source, _ in sources(resource) if (ref := source.reference)))
        found = await asyncio.gather(*(self._client.get(kind, namespace, name) for kind, name in refs))
        return dict(zip(refs, found, strict=True))

    async def _selected(self, namespace: str, resource: AnyResource) -> tuple[list[Object], tuple[str, ...]]:
        """The jobs that the spec selects, and what is wrong with how it does that."""
        if not isinstance(resource, ModelDeployment) or resource.spec.adapter_selector is None:
            return [], ()
        labels = resource.spec.adapter_selector.match_labels
        selector = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
        try:
            return await self._client.list("FineTuneJob", namespace, selector), ()
        except ApiError as error:
            if error.status != 400:
                raise
            return [], (f"spec.adapterSelector.matchLabels: {error.message}",)

    async def _refusals(self, job: Object | None, pods: list[Object]) -> tuple[str, ...]:
        """Why pods of the newest Job could not be made. The Job controller says so in Events only."""
        if job is None or job["spec"].get("suspend"):
            return ()
        meta = job["metadata"]
        number = meta.get("labels", {}).get(ATTEMPT_LABEL)
        if sum(pod["metadata"]["labels"].get(ATTEMPT_LABEL) == number for pod in pods) >= job["spec"]["parallelism"]:
            return ()
        selector = f"involvedObject.uid={meta['uid']},reason=FailedCreate"
        events = await self._client.list("Event", meta["namespace"], fields=selector)
        return tuple(event["message"] for event in sorted(events, key=_when)[-1:])

    async def _lost_nodes(self, pods: list[Object]) -> frozenset[str]:
        """Nodes of pods on their way out which do not answer any more, or are gone."""
        going = (p for p in pods if "deletionTimestamp" in p["metadata"] and not pod_facts.is_over(p))
        names = sorted({str(p["spec"]["nodeName"]) for p in going if p["spec"].get("nodeName")})
        try:
            nodes = await asyncio.gather(*(self._client.get("Node", "", name) for name in names))
        except ApiError as error:
            if error.status == 403:  # a cluster may keep its nodes to itself
                return frozenset()
            raise
        return frozenset(name for name, node in zip(names, nodes, strict=True) if node is None or not answers(node))

    async def _gpu_memory(self, resource: AnyResource) -> int | None:
        """Bytes of the smallest GPU among the nodes that the pods may run on, by the labels of NVIDIA's GPU feature
        discovery. None: not told, or not needed.
        """
        if isinstance(resource, ModelDeployment):
            if not gpus(resource.spec):
                return None
            selector = ""
        elif isinstance(resource, FineTuneJob) and preflight.needs_gpu_memory(resource):
            selector = ",".join(f"{k}={v}" for k, v in sorted((resource.spec.pod_template.node_selector or {}).items()))
        else:
            return None
        try:
            nodes = await self._client.list("Node", "", selector)
        except ApiError as error:
            # A cluster may keep its nodes to itself. A selector that is none is refused, and said, with the Job.
            if error.status in {400, 403}:
                return None
            raise
        sizes = [int(size) for n in nodes if (size := n["metadata"].get("labels", {}).get(GPU_MEMORY_LABEL))]
        return min(sizes) * 2**20 if sizes else None

    async def _workload(self, job: Object | None) -> Object | None:
        """Kueue's Workload of a Job that it has not admitted."""
        if job is None or QUEUE_LABEL not in job["metadata"].get("labels", {}) or not job["spec"].get("suspend"):
            return None
        selector = f"kueue.x-k8s.io/job-uid={job['metadata']['uid']}"
        try:
            found = await self._client.list("Workload", job["metadata"]["namespace"], selector)
        except ApiError as error:
            if error.status in {403, 404}:  # Kueue is not there, or is none of our business
                return None
            raise
        return found[0] if found else None

    async def _report(self, pods: list[Object]) -> Report | None:
        """Progress, from rank 0 of the newest attempt."""
        for pod in reversed(pods):
            first = pod_facts.rank(pod) == 0 or pod["metadata"]["labels"].get(ROLE_LABEL) == ROLE
            if first and pod_facts.running(pod):
                return await self._ask(Report, pod, PORT, "/progress")
        return None

    async def _agents(self, pods: list[Object]) -> dict[str, AgentStatus]:
        asked = [
            pod
            for pod in pods
            if pod.get("status", {}).get("podIP")
            and "deletionTimestamp" not in pod["metadata"]
            and pod["metadata"]["labels"].get(ROLE_LABEL) != WORKER
        ]
        found = await asyncio.gather(*(self._agent(pod) for pod in asked))
        return {pod_facts.name(pod): status for pod, status in zip(asked, found, strict=True) if status}

    async def _agent(self, pod: Object) -> AgentStatus | None:
        """What the pod's agent says, or None where it does not answer. Only what is new is transferred and parsed."""
        uid = str(pod["metadata"]["uid"])
        tag, known = self._heard.pop(uid, ("", None))
        headers = {"If-None-Match": tag} if known else {}
        url = f"http://{host_port(pod['status']['podIP'], AGENT_PORT)}/status"
        try:
            async with self._get(url, headers) as answer:
                if answer.status == 200:
                    tag, known = answer.headers.get("ETag", ""), AgentStatus.model_validate_json(await _body(answer))
                elif answer.status != 304:
                    return None
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None
        if tag and known:
            self._heard[uid] = tag, known
            while len(self._heard) > MAX_HEARD:
                del self._heard[next(iter(self._heard))]
        return known

    async def _gateways(self, pods: Iterable[Object]) -> dict[str, GatewayStatus]:
        asked = [pod for pod in pods if pod_facts.running(pod)]
        said = await asyncio.gather(*(self._ask(GatewayStatus, pod, AGENT_PORT, "/status") for pod in asked))
        found = [(pod, one) for pod, one in zip(asked, said, strict=True) if one]
        return {pod_facts.name(pod): one for pod, one in found if one.pod_uid in ("", pod["metadata"]["uid"])}

    async def _ask(self, model: type[Said], pod: Object, port: int, path: str) -> Said | None:
        """What a pod says, or None where it does not answer, or answers something else: it may be starting, or gone."""
        url = f"http://{host_port(pod['status']['podIP'], port)}{path}"
        try:
            async with self._get(url) as answer:
                return model.model_validate_json(await _body(answer)) if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, ValueError):  # also ValidationError
            return None

    def _get(self, url: str, headers: Mapping[str, str] | None = None) -> AbstractAsyncContextManager[Answer]:
        """One request to a pod. It leads nowhere else: what runs in a pod is its user's."""
        limit = aiohttp.ClientTimeout(total=ASK_SECONDS)
        return self._http.get(url, headers=headers, timeout=limit, allow_redirects=False)


def _when(event: Object) -> str:
    """When an event was seen last; the API server lists events by their names."""
    return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp"))


async def _body(answer: Answer) -> bytes:
    """The body of a pod's answer. Raises ValueError where it is longer than any of ours."""
    body = bytearray()
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > MAX_BODY:
            raise ValueError(f"{answer.url} says more than {MAX_BODY} bytes")
    return bytes(body)


def newest_job(owner: Owner, resource: AnyJob) -> str:
    """Name of the Job of the open attempt, or of the next one."""
    return job_name(owner, attempts.number(resource.status))


def answers(node: Object) -> bool:
    """Whether the node's kubelet still says that it is there."""
    return any(c["type"] == "Ready" and c["status"] == "True" for c in node.get("status", {}).get("conditions", ()))
