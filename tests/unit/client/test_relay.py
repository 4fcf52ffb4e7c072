"""A deployment's API on this machine, between real HTTP servers: an API server's proxy, and whoever asks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tunesmith.client.relay import relay
from tunesmith.kube.connection import Connection

PROXY = "/api/v1/namespaces/ns/services/chat:http/proxy/v1/"


class Kubernetes:
    """Says what it is asked for, and has a secret beside."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.breaks = False

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        if not self.breaks:
            return web.json_response({"secret": "x"})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: 1\n\n")
        await asyncio.sleep(0.05)
        request.transport.abort()  # type: ignore[union-attr]
        return response


@asynccontextmanager
async def relayed(kubernetes: Kubernetes) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", kubernetes.answer)
    async with TestServer(app) as server:
        connection = Connection.of_token(str(server.make_url("")).rstrip("/"), "", "t")
        async with connection, relay(connection, "ns", "chat") as url:
            yield url


async def get(url: str, path: str) -> bytes:
    """As it is written: a client would tidy the path up."""
    host, _, port = url.removeprefix("http://").removesuffix("/v1").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


@pytest.mark.parametrize("path", ["models", "models/team.a_b-1:2", "chat/completions"])
async def test_the_api_is_reached(path: str) -> None:
    kubernetes = Kubernetes()
    async with relayed(kubernetes) as url:
        assert (await get(url, f"/v1/{path}")).split()[1] == b"200"
    assert kubernetes.asked == [PROXY + path]


@pytest.mark.parametrize(
    "path",
    [
        "../../../../secrets/admin", "..%2F..%2F..%2F..%2Fsecrets%2Fadmin", "models/%2e%2e/%2e%2e/%2e%2e/%2e%2e/x",
        "%252e%252e/%252e%252e/x", "models%3Fa=b", "models%23a", "models/./x", "", "models//x", "models\\..\\x",
    ],
)  # fmt: skip
async def test_nothing_else_of_the_cluster_is(path: str) -> None:
    """It asks with the user's own rights, and any program of this machine may ask it."""
    kubernetes = Kubernetes()
    async with relayed(kubernetes) as url:
        assert (await get(url, f"/v1/{path}")).split()[1] == b"404"
    assert not kubernetes.asked


async def test_an_answer_that_breaks_off_is_seen_to() -> None:
    kubernetes = Kubernetes()
    kubernetes.breaks = True
    async with relayed(kubernetes) as url, aiohttp.ClientSession() as http, http.get(f"{url}/models") as response:
        assert await response.content.readline() == b"data: 1\n"
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
