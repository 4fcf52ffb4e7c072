"""HTTP to the API server, with the credentials of a kubeconfig or of the pod.

The library's typed models cost 35 MB of memory, so its transport and its configuration are used without them.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

Object = dict[str, Any]
REQUEST_SECONDS = 30.0
MOST_ERROR_BYTES = 2**20
POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
DEFAULT_KUBECONFIG = "~/.kube/config"


class ApiError(Exception):
    """The API server refused a request: its status code and message."""

    def __init__(self, status: int, message: str, details: Object | None = None, reason: str = "") -> None:
        super().__init__(f"{message} (HTTP {status})")
        self.status = status
        self.message = message
        self.details = details or {}
        """Of the Status object that it answered with, as is `reason`."""
        self.reason = reason

    @property
    def permanent(self) -> bool:
        """Whether the same request will be refused again: what it asks is forbidden, invalid, or no kind at all."""
        return self.status in {400, 403, 404, 422}


class Connection:
    """Requests to one API server. Used as `async with Connection() as connection`."""

    def __init__(self, kubeconfig: str | None = None, context: str | None = None) -> None:
        self._wanted = kubeconfig, context
        self._api: ApiClient | None = None
        self.namespace = "default"
        """Of the kubeconfig's context, or the pod's own."""

    @classmethod
    def of_token(cls, server: str, authority: str, token: str) -> Self:
        """As whoever the token is of, and with no credentials of this process. `authority`: file of the server's CA."""
        configuration = Configuration(host=server, ssl_ca_cert=authority)
        configuration.api_key["BearerToken"] = f"Bearer {token}"
        connection = cls()
        connection._api = _client_of(configuration)
        return connection

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Read the credentials: the ones asked for, else KUBECONFIG's, else the pod's, else the user's file's."""
        if self._api:
            return
        named, context = self._wanted
        path = named or os.environ.get("KUBECONFIG")
        configuration = Configuration()
        if path or context or "KUBERNETES_SERVICE_HOST" not in os.environ:
            _find(path or DEFAULT_KUBECONFIG)
            loader = await load_kube_config(  # type: ignore[no-untyped-call]
                path or DEFAULT_KUBECONFIG, context=context, client_configuration=configuration
            )
            self.namespace = loader.current_context["context"].get("namespace") or "default"
        else:
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            self.namespace = _own_namespace() or self.namespace
        self._api = _client_of(configuration)

    async def close(self) -> None:
        """Close what is open."""
        if self._api:
            await self._api.close()  # type: ignore[no-untyped-call]
            self._api = None

    @property
    def server(self) -> str:
        """The API server's address."""
        return str(self._client.configuration.host)

    async def call(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        query: dict[str, str] | None = None,
        content: str = "application/json",
        accept: str = "application/json",
    ) -> Object:
        """One request and its JSON. Raises ApiError, and aiohttp's errors where the server cannot be reached."""
        async with self.request(method, path, body, query=query, content=content, accept=accept) as response:
            result: Object = json.loads(await response.read())
            return result

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        body: Object | bytes | None = None,
        *,
        query: dict[str, str] | None = None,
        content: str = "application/json",
        accept: str = "*/*",
        seconds: float | None = REQUEST_SECONDS,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One request and its answer, to be read while the block runs. `seconds` None: it may last for ever."""
        request = await self._client.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params={"Accept": accept, "Content-Type": content},
            body=body,
            auth_settings=["BearerToken"],
        )
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=REQUEST_SECONDS)
        answer = await self._client.call_api(*request, _request_timeout=timeout)
        response: aiohttp.ClientResponse = answer.response
        try:
            if not 200 <= response.status <= 299:
                raise _refused(response.status, await _beginning(response))
            yield response
        finally:
            response.release() if response.content.is_eof() else response.close()

    async def lines(
        self,
        path: str,
        *,
        method: str = "GET",
        body: Object | None = None,
        query: dict[str, str] | None = None,
        most: int = 2**20,
    ) -> AsyncIterator[str]:
        """The lines of an answer as they come. What is longer than `most` bytes is cut into several."""
        rest = b""
        async with self.request(method, path, body, query=query, seconds=None) as response:
            async for chunk in response.content.iter_any():
                *whole, rest = (rest + chunk).split(b"\n")
                for line in _texts(whole):
                    yield line
                if len(rest) > most:
                    yield rest.decode(errors="replace")
                    rest = b""
        if rest:
            yield rest.decode(errors="replace")

    @property
    def _client(self) -> ApiClient:
        if self._api is None:
            raise RuntimeError("the connection is used outside of its `async with`")
        return self._api


def _client_of(configuration: Configuration) -> ApiClient:
    configuration.client_session_kwargs = {"middlewares": (_stay,)}
    return ApiClient(configuration)


async def _stay(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Follow no redirect. The API server makes none, but passes on those of the Services that it is a proxy of: they
    would lead to where this process may go, and whoever asks may not.
    """
    response = await handler(request)
    if 300 <= response.status <= 399:
        response.close()
        raise ApiError(502, f"the answer leads to another address (HTTP {response.status}), which is not followed")
    return response


def _find(paths: str) -> None:
    """Raise ConfigException where none of the files is there."""
    if not any(os.path.exists(os.path.expanduser(one)) for one in paths.split(os.pathsep)):
        raise ConfigException(f"there is no kubeconfig {paths}")


def _own_namespace() -> str:
    return POD_NAMESPACE.read_text().strip() if POD_NAMESPACE.exists() else ""


def _texts(lines: Iterable[bytes]) -> list[str]:
    return [line.decode(errors="replace") for line in lines]


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """What an error says; one that has no end may come from a Service behind the API server."""
    data = b""
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > MOST_ERROR_BYTES:
            break
    return data


def _refused(status: int, data: bytes) -> ApiError:
    try:
        answer = json.loads(data)
        message = str(answer.get("message") or data.decode())
        return ApiError(status, message, answer.get("details"), answer.get("reason") or "")
    except (ValueError, AttributeError):
        return ApiError(status, data.decode(errors="replace").strip() or f"HTTP {status}")
