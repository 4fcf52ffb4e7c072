"""A thin client for the kinds that tunesmith reads and writes: dicts in, dicts out.

The library's typed models cost 35 MB of memory, so its transport and its configuration are used without them.
"""

from __future__ import annotations

import json
import os
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from kubernetes.aio.client import ApiClient
from kubernetes.aio.config import load_incluster_config, load_kube_config

from tunesmith.api.base import GROUP, VERSION

Object = dict[str, Any]

CHILDREN_MANAGER = "tunesmith"
STATUS_MANAGER = "tunesmith-status"
REQUEST_SECONDS = 30.0

CUSTOM = f"/apis/{GROUP}/{VERSION}"
RESOURCES = {
    "FineTuneJob": (CUSTOM, "finetunejobs"),
    "MergeJob": (CUSTOM, "mergejobs"),
    "ModelDeployment": (CUSTOM, "modeldeployments"),
    "Job": ("/apis/batch/v1", "jobs"),
    "Deployment": ("/apis/apps/v1", "deployments"),
    "PodDisruptionBudget": ("/apis/policy/v1", "poddisruptionbudgets"),
    "Lease": ("/apis/coordination.k8s.io/v1", "leases"),
    "Pod": ("/api/v1", "pods"),
    "Service": ("/api/v1", "services"),
    "ConfigMap": ("/api/v1", "configmaps"),
    "Secret": ("/api/v1", "secrets"),
    "PersistentVolumeClaim": ("/api/v1", "persistentvolumeclaims"),
    "Event": ("/api/v1", "events"),
}


class ApiError(Exception):
    """The API server refused a request: its status code and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{message} (HTTP {status})")
        self.status = status
        self.message = message

    @property
    def permanent(self) -> bool:
        """Whether the same request will be refused again: what it asks is forbidden or invalid."""
        return self.status in {400, 403, 422}


class Client:
    """Reads and writes objects. One per process."""

    def __init__(self) -> None:
        self._api: ApiClient | None = None

    async def __aenter__(self) -> Self:
        if "KUBERNETES_SERVICE_HOST" in os.environ:
            load_incluster_config()  # type: ignore[no-untyped-call]
        else:
            await load_kube_config(os.environ.get("KUBECONFIG"))  # type: ignore[no-untyped-call]
        self._api = ApiClient()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._api:
            await self._api.close()  # type: ignore[no-untyped-call]

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """The object, or None."""
        try:
            return await self._call("GET", _path(kind, namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def exists(self, kind: str, namespace: str, name: str) -> bool:
        """Whether the object is there. Its content is not transferred: it may be a Secret's."""
        try:
            await self._call(
                "GET",
                _path(kind, namespace, name),
                accept="application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
            )
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    async def list(self, kind: str, namespace: str, selector: str = "") -> list[Object]:
        """The objects with these labels."""
        found = await self._call("GET", _path(kind, namespace), query={"labelSelector": selector} if selector else {})
        head = {"kind": kind}  # items of a list come without their kind
        return [{**head, **item} for item in found["items"]]

    async def create(self, body: Object) -> bool:
        """Make the object. False: there was one of its name already."""
        meta = body["metadata"]
        try:
            await self._call(
                "POST", _path(body["kind"], meta["namespace"]), body, query={"fieldManager": CHILDREN_MANAGER}
            )
        except ApiError as error:
            if error.status == 409:
                return False
            raise
        return True

    async def apply(self, body: Object) -> Object:
        """Make or change the object by server-side apply."""
        meta = body["metadata"]
        return await self._apply(_path(body["kind"], meta["namespace"], meta["name"]), body, CHILDREN_MANAGER)

    async def apply_status(self, resource: Object, status: Object) -> Object:
        """Write the whole status of a custom resource. Fails where the resource was made anew meanwhile."""
        meta = resource["metadata"]
        body = {
            "apiVersion": resource["apiVersion"],
            "kind": resource["kind"],
            "metadata": {"namespace": meta["namespace"], "name": meta["name"], "uid": meta["uid"]},
            "status": status,
        }
        path = _path(resource["kind"], meta["namespace"], meta["name"]) + "/status"
        return await self._apply(path, body, STATUS_MANAGER)

    async def replace(self, body: Object) -> Object:
        """Replace the object if it is still at the given resourceVersion."""
        meta = body["metadata"]
        return await self._call("PUT", _path(body["kind"], meta["namespace"], meta["name"]), body)

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        """Delete this very object, if it is still there."""
        body = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        try:
            await self._call("DELETE", _path(kind, namespace, name), body)
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
        if self._api is None:
            raise RuntimeError("the client is used outside of its `async with`")
        request = await self._api.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Accept": accept, "Content-Type": content},
            body=body,
            auth_settings=["BearerToken"],
        )
        response = await self._api.call_api(*request, _request_timeout=REQUEST_SECONDS)
        data: bytes = await response.read()  # type: ignore[no-untyped-call]
        if not 200 <= response.status <= 299:
            raise ApiError(response.status, _message(data))
        result: Object = json.loads(data)
        return result


def _path(kind: str, namespace: str, name: str | None = None) -> str:
    prefix, plural = RESOURCES[kind]
    path = f"{prefix}/namespaces/{namespace}/{plural}"
    return f"{path}/{quote(name)}" if name else path


def _message(data: bytes) -> str:
    try:
        return str(json.loads(data).get("message") or data.decode())
    except ValueError:
        return data.decode(errors="replace")
