"""Engines with their agents, on addresses of the loopback: real HTTP servers, small enough to count what they do."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from tunesmith.agent.guard import Keys
from tunesmith.gateway.control import Control
from tunesmith.gateway.metrics import Metrics
from tunesmith.gateway.pods import Pods
from tunesmith.gateway.proxy import Proxy, session
from tunesmith.gateway.table import Table
from tunesmith.serving.routes import Routes, Split

TOKEN = "of-the-operator"


class Engine:
    """One engine, and what its agent says."""

    def __init__(self, address: str, *adapters: str) -> None:
        self.address = address
        self.adapters = set(adapters)
        self.loads: set[str] = set()
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        self.cancelled = 0
        self.tokens = 3
        self.go = asyncio.Event()
        self.go.set()
        self.status = 200
        self.breaks_after: int | None = None
        self.says: list[bytes] = []
        """Instead of numbers, in a stream."""
        self._runners: list[web.AppRunner] = []

    async def start(self, port: int, agent_port: int) -> None:
        await self.start_engine(port)
        agent = web.Application()
        agent.router.add_get("/status", self.said)
        await self._serve(agent, agent_port)

    async def start_engine(self, port: int) -> None:
        app = web.Application(client_max_size=2**25)
        app.router.add_route("*", "/{path:.*}", self.answer)
        await self._serve(app, port)

    async def _serve(self, app: web.Application, port: int) -> None:
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, self.address, port).start()
        self._runners.append(runner)

    async def stop(self) -> None:
        while self._runners:
            await self._runners.pop().cleanup()

    async def said(self, _: web.Request) -> web.Response:
        ready = [{"name": n, "uri": "u", "state": "Ready", "digest": "d"} for n in sorted(self.adapters)]
        coming = [{"name": n, "uri": "u", "state": "Loading"} for n in sorted(self.loads)]
        adapters = ready + coming
        return web.json_response(
            {"revision": 1, "podUid": self.address, "engine": "Ready", "ready": True, "adapters": adapters}
        )

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read() or b"{}")
        self.asked.append((request.path, body))
        self.headers.append(dict(request.headers))
        try:
            await self.go.wait()
            if body.get("model") not in {"base", *self.adapters}:
                return web.json_response({"error": {"message": "does not exist"}}, status=404)
            if self.status != 200:
                return web.json_response({"error": {"message": "broken"}}, status=self.status)
            if self.breaks_after == 0:
                request.transport.abort()  # type: ignore[union-attr]
                return web.Response()
            if not body.get("stream"):
                return web.json_response({"by": self.address, "model": body["model"]})
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for part in self.says:
                await response.write(part)
                await asyncio.sleep(0.02)
            if self.says:
                return response
            for number in range(self.tokens):
                if number == self.breaks_after:
                    request.transport.abort()  # type: ignore[union-attr]
                    return response
                await response.write(f"data: {number}\n\n".encode())
                await self.go.wait()
                await asyncio.sleep(0)
            await response.write_eof()
            return response
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


class Gateway:
    """A gateway on the loopback, and a client of it."""

    def __init__(
        self, proxy: Proxy, url: str, control: str, http: aiohttp.ClientSession, engines: list[Engine]
    ) -> None:
        self.proxy, self.url, self.control, self.http, self.engines = proxy, url, control, http, engines
        self.table, self.pods = proxy.table, proxy.pods

    def route(self, *adapters: str, **fields: Any) -> None:
        """Give it new routes."""
        splits = {name: Split(percent=percent, trial=f"{name}.0") for name, percent in fields.pop("splits", {}).items()}
        revision = self.table.routes.revision + 1 if self.table.routes else 1
        routes = Routes(revision=revision, model_name="base", adapters=list(adapters), splits=splits, **fields)
        assert self.table.offer(routes)

    async def ask(self, model: str = "base", path: str = "/v1/completions", **more: Any) -> tuple[int, Any]:
        headers = more.pop("headers", None)
        body = {"model": model, "prompt": "x", **more}
        sent = {"Content-Type": "application/json", **(headers or {})}
        async with self.http.post(self.url + path, data=BytesIO(json.dumps(body).encode()), headers=sent) as response:
            data = await response.read()
            return response.status, json.loads(data) if data.startswith(b"{") else data.decode()

    async def send(self, body: bytes, *lines: bytes, port: str = "", method: str = "POST /v1/completions") -> bytes:
        """A request as it is written, which a client library would tidy up; the whole answer."""
        host, _, number = (port or self.url).removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(number))
        head = [f"{method} HTTP/1.1".encode(), b"Host: x", b"Content-Length: %d" % len(body), b"Connection: close"]
        writer.write(b"\r\n".join([*head, *lines]) + b"\r\n\r\n" + body)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    @property
    def held(self) -> int:
        return self.proxy.held


async def until(true: Any, seconds: float = 30) -> None:
    """Wait for something that happens in another task."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110 (state of the servers, not an event)
            await asyncio.sleep(0.01)


@asynccontextmanager
async def gateway(
    engines: list[Engine], folder: Path, keys: Path | None = None, seed: int = 1
) -> AsyncIterator[Gateway]:
    """A gateway over these engines."""
    ports = [free_port(), free_port()]
    for engine in engines:
        await engine.start(*ports)

    async def find() -> list[str]:
        return [engine.address for engine in engines]

    rng = random.Random(seed)
    (folder / "token").write_text(TOKEN)
    async with aiohttp.ClientSession() as asking, session() as http, aiohttp.ClientSession() as client:
        pods = Pods(asking, find, ports[1], rng)
        table = Table(folder / "routes.json", rng)
        proxy = Proxy(http, pods, table, Metrics(), Keys(str(keys) if keys else ""), ports[0])
        apps = [proxy.application(), Control(proxy, folder / "token", "uid").application()]
        runners = [web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=1) for app in apps]
        urls = []
        for runner in runners:
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", port := free_port())
            await site.start()
            urls.append(f"http://127.0.0.1:{port}")
        watch = asyncio.create_task(pods.watch())
        one = Gateway(proxy, urls[0], urls[1], client, engines)
        one.ports = ports  # type: ignore[attr-defined]
        one.route()
        await pods.look()
        try:
            yield one
        finally:
            for engine in engines:
                engine.go.set()
            for runner in runners:
                await runner.cleanup()
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            for engine in engines:
                await engine.stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])
