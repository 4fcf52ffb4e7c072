"""What is wrong with a cluster, as far as its user may see it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from tunesmith import __version__
from tunesmith.api.base import GROUP, VERSION
from tunesmith.client.aio import AsyncClient
from tunesmith.client.answers import INSTALL
from tunesmith.kube.client import path_of
from tunesmith.kube.connection import ApiError, Object
from tunesmith.schema.crd import KINDS
from tunesmith.schema.walk import schema_of
from tunesmith.training.matrix import GPUS

OLDEST = (1, 30)
STORE = "tunesmith-store"
OPERATOR = "app.kubernetes.io/part-of=tunesmith,app.kubernetes.io/component=operator"
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
GPU_MEMORY = "nvidia.com/gpu.memory"
UNSEEN_SECONDS = 60.0

Verdict = Literal["ok", "warning", "error", "unknown"]
# What a user needs to work with: verbs, group, resource, subresource.
RIGHTS = (
    *((("get", "list", "create", "patch", "delete"), GROUP, kind.plural, "") for kind in KINDS),
    (("list",), "", "pods", ""),
    (("get",), "", "pods", "log"),
    (("get", "create"), "", "services", "proxy"),
)


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    check: str
    verdict: Verdict
    found: str
    todo: str = ""


Check = Callable[[AsyncClient], Awaitable[list[Finding]]]


async def diagnose(client: AsyncClient) -> list[Finding]:
    """All checks, one after the other; what the user may not see is unknown, and no error."""
    result: list[Finding] = []
    for name, check in CHECKS.items():
        try:
            result += await check(client)
        except ApiError as error:
            if error.status not in {403, 404}:
                raise
            result.append(Finding(name, "unknown", error.message))
    return result


async def server(client: AsyncClient) -> list[Finding]:
    """The API server and its version."""
    info = await client.connection.call("GET", "/version")
    number = (int(info["major"]), int("".join(c for c in info["minor"] if c.isdigit())))
    old = number < OLDEST
    todo = f"Kubernetes {OLDEST[0]}.{OLDEST[1]} or newer is needed" if old else ""
    found = f"{info['gitVersion']} at {client.connection.server}"
    return [Finding("Kubernetes", "error" if old else "ok", found, todo)]


async def definitions(client: AsyncClient) -> list[Finding]:
    """The CRDs, and whether they have the fields that this version knows."""
    result = []
    for kind in KINDS:
        name = f"{kind.plural}.{GROUP}"
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"
        try:
            crd = await client.connection.call("GET", path)
        except ApiError as error:
            if error.status == 403:
                return await _served(client)
            if error.status != 404:
                raise
            result.append(Finding(f"CRD {name}", "error", "not there", INSTALL))
            continue
        served = {one["name"]: one for one in crd["spec"]["versions"] if one["served"]}
        if VERSION not in served:
            result.append(Finding(f"CRD {name}", "error", f"serves {', '.join(served)}", f"{VERSION} is needed"))
            continue
        lacks = missing(schema_of(kind.name), served[VERSION]["schema"]["openAPIV3Schema"])
        todo = f"upgrade the chart: this client ({__version__}) is newer" if lacks else ""
        found = f"{VERSION}, without {', '.join(lacks[:5])}" if lacks else VERSION
        result.append(Finding(f"CRD {name}", "warning" if lacks else "ok", found, todo))
    return result


async def _served(client: AsyncClient) -> list[Finding]:
    """The same by discovery, for those who may not read CRDs."""
    try:
        known = await client.connection.call("GET", f"/apis/{GROUP}/{VERSION}")
    except ApiError as error:
        if error.status != 404:
            raise
        return [Finding("CRDs", "error", f"{GROUP}/{VERSION} is not served", INSTALL)]
    names = {one["name"] for one in known["resources"]}
    absent = [kind.plural for kind in KINDS if kind.plural not in names]
    if absent:
        return [Finding("CRDs", "error", f"{', '.join(absent)} not there", INSTALL)]
    return [Finding("CRDs", "ok", f"{GROUP}/{VERSION} is served")]


def missing(ours: Object, theirs: Object, path: str = "") -> list[str]:
    """Fields of our schema that the cluster's lacks."""
    result = []
    for name, inner in ours.get("properties", {}).items():
        here = f"{path}.{name}".lstrip(".")
        found = theirs.get("properties", {}).get(name)
        if found is None:
            result.append(here)
        else:
            result += missing(inner, found, here)
    if "items" in ours:
        result += missing(ours["items"], theirs.get("items", {}), f"{path}[]")
    return result


async def rights(client: AsyncClient) -> list[Finding]:
    """What the user may do in the namespace."""
    wanted = [(verb, *rest) for verbs, *rest in RIGHTS for verb in verbs]
    allowed = await asyncio.gather(*(_allowed(client, *one) for one in wanted))
    refused = [
        f"{verb} {resource}{'/' if sub else ''}{sub}"
        for (verb, _, resource, sub), yes in zip(wanted, allowed, strict=True)
        if not yes
    ]
    what = f"rights in {client.namespace}"
    if not refused:
        return [Finding(what, "ok", "all that the commands need")]
    todo = f"kubectl create rolebinding … --clusterrole=edit --namespace={client.namespace} by an administrator"
    return [Finding(what, "error" if len(refused) > 2 else "warning", f"you may not {', '.join(refused)}", todo)]


async def _allowed(client: AsyncClient, verb: str, group: str, resource: str, subresource: str) -> bool:
    attributes = {"namespace": client.namespace, "verb": verb, "group": group, "resource": resource}
    if subresource:
        attributes["subresource"] = subresource
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    answer = await client.connection.call("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body)
    return bool(answer["status"]["allowed"])


async def operator(client: AsyncClient) -> list[Finding]:
    """The operator's Deployment, and resources that nobody has looked at."""
    result, items = [], await _list(client, "/apis/apps/v1/deployments", labelSelector=OPERATOR)
    for one in items:
        meta, status = one["metadata"], one.get("status", {})
        name, ready, wanted = meta["name"], status.get("readyReplicas", 0), one["spec"]["replicas"]
        version = meta.get("labels", {}).get("app.kubernetes.io/version", "")
        found = f"{meta['namespace']}/{name} {version}: {ready} of {wanted} pods ready"
        todo = "" if ready else f"kubectl -n {meta['namespace']} describe deployment {name}"
        verdict: Verdict = "ok" if ready == wanted else "warning" if ready else "error"
        if ready and version and version != __version__:
            verdict, todo = "warning", f"this client is {__version__}: use the same version"
        result.append(Finding("operator", verdict, found, todo))
    unseen = []
    for kind in KINDS:
        for one in await _list(client, f"/apis/{GROUP}/{VERSION}/namespaces/{client.namespace}/{kind.plural}"):
            made = datetime.fromisoformat(one["metadata"]["creationTimestamp"])
            old = (datetime.now(UTC) - made).total_seconds() > UNSEEN_SECONDS
            if old and not (one.get("status") or {}).get("conditions"):
                unseen.append(f"{kind.name} {one['metadata']['name']}")
    if unseen:
        todo = "the operator is down, or does not watch this namespace (chart value watchNamespaces)"
        result.append(Finding("operator", "error", f"has not looked at {', '.join(unseen)}", todo))
    if not items and not unseen:
        result.append(Finding("operator", "warning", "no Deployment of the chart is there", INSTALL))
    return result


async def accelerators(client: AsyncClient) -> list[Finding]:
    """GPUs of the nodes, and whether their memory is known."""
    result = []
    for node in await _list(client, "/api/v1/nodes"):
        have = node.get("status", {}).get("allocatable", {})
        for name in GPUS:
            if int(have.get(name, 0)):
                size = node["metadata"].get("labels", {}).get(GPU_MEMORY)
                todo = "" if size else "install GPU feature discovery, or set spec.memory.perDevice"
                found = f"{have[name]} {name}" + (f", {int(size) / 1024:.0f} GiB each" if size else ", memory not told")
                where = f"node {node['metadata']['name']}"
                result.append(Finding(where, "ok" if size else "warning", found, todo))
    if result:
        return result
    return [Finding("GPUs", "warning", "no node has one", "install the vendor's device plugin, or train on CPU")]


async def storage(client: AsyncClient) -> list[Finding]:
    """Storage classes, and the store of the namespace."""
    classes = await _list(client, "/apis/storage.k8s.io/v1/storageclasses")
    default = [c for c in classes if c["metadata"].get("annotations", {}).get(DEFAULT_CLASS) == "true"]
    names = ", ".join(one["metadata"]["name"] for one in classes) or "none"
    result = [
        Finding("storage classes", "ok", f"{names}; default {default[0]['metadata']['name']}")
        if default
        else Finding("storage classes", "warning", f"{names}; none is the default", "claims must name one")
    ]
    try:
        claim = await client.connection.call("GET", path_of("PersistentVolumeClaim", client.namespace, STORE))
    except ApiError as error:
        if error.status != 404:
            raise
        todo = f"make a ReadWriteMany claim {STORE}, or set spec.output.uri (chart value defaultStore)"
        return [*result, Finding("store", "warning", f"no claim {STORE} in {client.namespace}", todo)]
    modes, phase = claim["spec"]["accessModes"], claim.get("status", {}).get("phase")
    shared = "ReadWriteMany" in modes
    todo = "" if shared else "several nodes need ReadWriteMany"
    return [*result, Finding("store", "ok" if shared else "warning", f"{STORE}: {phase}, {', '.join(modes)}", todo)]


async def kueue(client: AsyncClient) -> list[Finding]:
    """Whether jobs can be queued."""
    groups = await client.connection.call("GET", "/apis")
    found = next((g for g in groups["groups"] if g["name"] == "kueue.x-k8s.io"), None)
    if found is None:
        return [Finding("Kueue", "ok", "not installed: spec.queueName cannot be used")]
    version = found["preferredVersion"]["groupVersion"]
    queues = await _list(client, f"/apis/{version}/namespaces/{client.namespace}/localqueues")
    names = ", ".join(one["metadata"]["name"] for one in queues)
    if not names:
        return [Finding("Kueue", "warning", f"no LocalQueue in {client.namespace}", "make one to use spec.queueName")]
    return [Finding("Kueue", "ok", f"LocalQueues: {names}")]


async def _list(client: AsyncClient, path: str, **query: str) -> list[Any]:
    found = await client.connection.call("GET", path, query=query)
    return list(found["items"])


CHECKS: dict[str, Check] = {
    "Kubernetes": server,
    "CRDs": definitions,
    "rights": rights,
    "operator": operator,
    "GPUs": accelerators,
    "storage": storage,
    "Kueue": kueue,
}
