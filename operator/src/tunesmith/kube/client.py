"""A thin client for the kinds that tunesmith reads and writes: dicts in, dicts out."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from prometheus_client import Counter

from tunesmith.api.base import GROUP, VERSION
from tunesmith.api.kinds import MODELS, plural
from tunesmith.kube.connection import ApiError, Connection, Object

__all__ = ["ApiError", "Client", "Object"]

CHILDREN_MANAGER = "tunesmith"
STATUS_MANAGER = "tunesmith-status"

REQUESTS = Counter("tunesmith_api_requests_total", "Requests of the operator to the API server.", ["verb", "code"])

CUSTOM = f"/apis/{GROUP}/{VERSION}"
RESOURCES = {
    **{kind: (CUSTOM, plural(kind)) for kind in MODELS},
    "Job": ("/apis/batch/v1", "jobs"),
    "Deployment": ("/apis/apps/v1", "deployments"),
    "LeaderWorkerSet": ("/apis/leaderworkerset.x-k8s.io/v1", "leaderworkersets"),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
    "PodDisruptionBudget": ("/apis/policy/v1", "poddisruptionbudgets"),
    "Lease": ("/apis/coordination.k8s.io/v1", "leases"),
    "Pod": ("/api/v1", "pods"),
    "Service": ("/api/v1", "services"),
    "HorizontalPodAutoscaler": ("/apis/autoscaling/v2", "horizontalpodautoscalers"),
    "ScaledObject": ("/apis/keda.sh/v1alpha1", "scaledobjects"),
    "HTTPRoute": ("/apis/gateway.networking.k8s.io/v1", "httproutes"),
    "EndpointSlice": ("/apis/discovery.k8s.io/v1", "endpointslices"),
    "ConfigMap": ("/api/v1", "configmaps"),
    "Secret": ("/api/v1", "secrets"),
    "PersistentVolumeClaim": ("/api/v1", "persistentvolumeclaims"),
    "Event": ("/api/v1", "events"),
    "Node": ("/api/v1", "nodes"),
    "Workload": ("/apis/kueue.x-k8s.io/v1beta2", "workloads"),
}
# Kinds whose group is in the object, since there are several of that name.
PLURALS = {"PodGroup": "podgroups"}
CLUSTER_SCOPED = frozenset({"Node"})


class Client:
    """Reads and writes objects. One per process."""

    def __init__(self) -> None:
        self._connection = Connection()
        self.require: Callable[[], None] = lambda: None
        """Asked before every write but those of the Lease; raises where this process may not write any more."""

    async def __aenter__(self) -> Self:
        await self._connection.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.close()

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """The object, or None."""
        try:
            return await self._call("GET", path_of(kind, namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def exists(self, kind: str, namespace: str, name: str) -> bool:
        """Whether the object is there. Its content is not transferred: it may be a Secret's."""
        try:
            await self._call(
                "GET",
                path_of(kind, namespace, name),
                accept="application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
            )
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    async def list(self, kind: str, namespace: str, selector: str = "", fields: str = "") -> list[Object]:
        """The objects with these labels and fields."""
        query = {"labelSelector": selector, "fieldSelector": fields}
        found = await self._call("GET", path_of(kind, namespace), query={k: v for k, v in query.items() if v})
        head = {"kind": kind}  # items of a list come without their kind
        return [{**head, **item} for item in found["items"]]

    async def create(self, body: Object) -> bool:
        """Make the object. False: there was one of its name already."""
        meta = body["metadata"]
        try:
            path = path_of(body["kind"], meta["namespace"], api_version=body["apiVersion"])
            await self._call("POST", path, body, query={"fieldManager": CHILDREN_MANAGER})
        except ApiError as error:
            if error.reason == "AlreadyExists":  # a quota that changes meanwhile is a conflict, too
                return False
            raise
        return True

    async def apply(self, body: Object) -> Object:
        """Make or change the object by server-side apply."""
        meta = body["metadata"]
        try:
            return await self._apply(path_of(body["kind"], meta["namespace"], meta["name"]), body, CHILDREN_MANAGER)
        except ApiError as error:
            if error.status == 404 and "." in body["apiVersion"].split("/")[0]:
                raise ApiError(404, f"the cluster has no {body['kind']} ({body['apiVersion']}): install it") from None
            raise

    async def apply_status(self, resource: Object, status: Object) -> None:
        """Write the whole status of a custom resource. Fails where the resource has changed meanwhile; nothing is to be
        written where it is gone.
        """
        meta = resource["metadata"]
        body = {
            "apiVersion": resource["apiVersion"],
            "kind": resource["kind"],
            # Refused where the resource has changed since it was read: by its user, or by another operator.
            "metadata": {key: meta[key] for key in ("namespace", "name", "uid", "resourceVersion")},
            "status": status,
        }
        path = path_of(resource["kind"], meta["namespace"], meta["name"]) + "/status"
        try:
            await self._apply(path, body, STATUS_MANAGER)
        except ApiError as error:
            if error.status != 404:
                raise

    async def replace(self, body: Object) -> Object:
        """Replace the object if it is still at the given resourceVersion."""
        meta = body["metadata"]
        return await self._call("PUT", path_of(body["kind"], meta["namespace"], meta["name"]), body)

    async def bury(self, pod: Object, reason: str, message: str) -> None:
        """Delete a pod whose node cannot say that it is gone. It is called failed first, as Kubernetes' own collector
        of pods does it: its Job waits for that.
        """
        meta = pod["metadata"]
        status = {"phase": "Failed", "reason": reason, "message": message}
        body = {"metadata": {"uid": meta["uid"]}, "status": status}
        path = path_of("Pod", meta["namespace"], meta["name"]) + "/status"
        try:
            await self._call("PATCH", path, body, content="application/merge-patch+json")
        except ApiError as error:
            if error.status not in {404, 409}:
                raise
        await self.delete(pod, gracePeriodSeconds=0)

    async def delete(self, live: Object, **options: Any) -> None:
        """Delete this very object, if it is still there."""
        meta = live["metadata"]
        body = {"preconditions": {"uid": meta["uid"]}, "propagationPolicy": "Background", **options}
        try:
            await self._call("DELETE", path_of(live["kind"], meta["namespace"], meta["name"]), body)
        except ApiError as error:
            if error.status not in {404, 409}:
                raise

    async def _apply(self, path: str, body: Object, manager: str) -> Object:
        query = {"fieldManager": manager, "force": "true", "fieldValidation": "Strict"}
        return await self._call("PATCH", path, body, query=query, content="application/apply-patch+yaml")

    async def _call(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        query: dict[str, str] | None = None,
        content: str = "application/json",
        accept: str = "application/json",
    ) -> Object:
        if method != "GET" and "/leases" not in path:
            self.require()
        code = "unreachable"
        try:
            result = await self._connection.call(method, path, body, query=query, content=content, accept=accept)
            code = "2xx"
        except ApiError as error:
            code = str(error.status)
            raise
        finally:
            REQUESTS.labels(method, code).inc()
        return result


def path_of(kind: str, namespace: str, name: str | None = None, api_version: str = "") -> str:
    """Path of an object, or of all of its kind in the namespace. Raises ApiError for a name that leads elsewhere: of
    what a spec names not all has been checked by the API server.
    """
    if name and (name in {".", ".."} or "/" in name or "%" in name):
        raise ApiError(404, f"{kind} {name!r}: no object can have this name", {"name": name})
    prefix, plural = (f"/apis/{api_version}", PLURALS[kind]) if kind in PLURALS else RESOURCES[kind]
    path = f"{prefix}/{plural}" if kind in CLUSTER_SCOPED else f"{prefix}/namespaces/{namespace}/{plural}"
    return f"{path}/{quote(name)}" if name else path
