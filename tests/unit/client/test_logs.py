"""Following logs, against the few answers of an API server that it needs. tests/integration asks a real one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from tunesmith.children.meta import Owner
from tunesmith.client import logs
from tunesmith.kube.connection import Connection

LINES = [f"2026-01-01T00:00:00.00000000{number}Z line {number}" for number in range(6)]


class Kubernetes:
    """One pod, whose log can be read in pieces: an API server ends a stream when it restarts, or after a while."""

    def __init__(self, *pieces: int, aborts: bool) -> None:
        self.pieces, self.aborts = list(pieces), aborts
        self.running = True
        self.since: list[str] = []

    async def pods(self, _: web.Request) -> web.Response:
        state = {"running": {}} if self.running else {"terminated": {"exitCode": 0}}
        meta: dict[str, Any] = {"name": "p", "uid": "u", "labels": {}}
        return web.json_response(
            {"items": [{"metadata": meta, "status": {"containerStatuses": [{"name": "trainer", "state": state}]}}]}
        )

    async def log(self, request: web.Request) -> web.StreamResponse:
        self.since.append(request.query.get("sinceTime", ""))
        response = web.StreamResponse()
        await response.prepare(request)
        end = self.pieces.pop(0) if self.pieces else len(LINES)
        # Times are compared by seconds there, so that lines come again.
        await response.write("".join(f"{line}\n" for line in LINES[:end]).encode())
        if end == len(LINES):
            self.running = False
        elif self.aborts:
            await asyncio.sleep(0.05)
            request.transport.abort()  # type: ignore[union-attr]
        return response


@pytest.mark.parametrize("aborts", [False, True])
async def test_a_stream_that_breaks_off_goes_on_where_it_was(aborts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOOK_SECONDS", 0.05)
    kubernetes, app = Kubernetes(2, 2, 4, aborts=aborts), web.Application()
    app.router.add_get("/api/v1/namespaces/ns/pods", kubernetes.pods)
    app.router.add_get("/api/v1/namespaces/ns/pods/p/log", kubernetes.log)

    async def over() -> bool:
        return not kubernetes.running

    async with asyncio.timeout(10), TestServer(app) as server:
        connection = Connection.of_token(str(server.make_url("")).rstrip("/"), "", "t")
        following = logs.follow(connection, Owner("FineTuneJob", "ns", "x", ""), logs.Which(), over, None)
        async with connection:
            assert [f"{one.time} {one.text}" async for one in following] == LINES
    assert kubernetes.since[:4] == ["", LINES[1].split()[0], LINES[1].split()[0], LINES[3].split()[0]]


class Endless:
    """One pod that writes without end, as fast as it is read."""

    def __init__(self) -> None:
        self.written = 0
        self.closed = asyncio.Event()

    async def pods(self, _: web.Request) -> web.Response:
        meta = {"name": "p", "uid": "u", "labels": {}}
        status = {"containerStatuses": [{"name": "trainer", "state": {"running": {}}}]}
        return web.json_response({"items": [{"metadata": meta, "status": status}]})

    async def log(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                lines = range(self.written, self.written + 1000)
                await response.write("".join(f"{STAMP.format(n)} {'x' * 1000}\n" for n in lines).encode())
                self.written += 1000
        finally:
            self.closed.set()


STAMP = "2026-01-01T00:00:00.{:09}Z"


async def test_who_reads_slowly_holds_up_the_log_and_who_stops_reading_ends_it() -> None:
    kubernetes, app = Endless(), web.Application()
    app.router.add_get("/api/v1/namespaces/ns/pods", kubernetes.pods)
    app.router.add_get("/api/v1/namespaces/ns/pods/p/log", kubernetes.log)

    async def over() -> bool:
        return False

    async with asyncio.timeout(30), TestServer(app, handler_cancellation=True) as server:
        connection = Connection.of_token(str(server.make_url("")).rstrip("/"), "", "t")
        following = logs.follow(connection, Owner("FineTuneJob", "ns", "x", ""), logs.Which(), over, None)
        async with connection:
            assert (await anext(following)).time == STAMP.format(0)
            before = -1
            while before < kubernetes.written:  # until nothing moves any more
                before = kubernetes.written
                await asyncio.sleep(0.5)
                assert before < 50_000, "what nobody has read is kept without bound"
            times = [(await anext(following)).time for _ in range(before)]
            assert times == [STAMP.format(number) for number in range(1, before + 1)], "a line was lost"
            await following.aclose()
            await kubernetes.closed.wait()


async def test_of_the_logs_of_many_ranks_the_newest_lines_of_all_are_kept() -> None:
    """8 ranks write 500 lines each, in turn. The last one of each goes on without a time, as what is too long does."""

    async def pods(_: web.Request) -> web.Response:
        status = {"containerStatuses": [{"name": "trainer", "state": {"running": {}}}]}
        metas = [{"name": f"p{rank}", "uid": f"u{rank}", "labels": {}} for rank in range(8)]
        return web.json_response({"items": [{"metadata": meta, "status": status} for meta in metas]})

    async def log(request: web.Request) -> web.Response:
        rank = int(request.match_info["pod"][1:])
        lines = "".join(f"{STAMP.format(number)} x\n" for number in range(rank, 4000, 8))
        return web.Response(text=f"{lines}the rest\n")

    app = web.Application()
    app.router.add_get("/api/v1/namespaces/ns/pods", pods)
    app.router.add_get("/api/v1/namespaces/ns/pods/{pod}/log", log)
    async with TestServer(app) as server:
        connection = Connection.of_token(str(server.make_url("")).rstrip("/"), "", "t")
        async with connection:
            owner = Owner("FineTuneJob", "ns", "x", "")
            found = await logs.merged(connection, owner, logs.Which(), None, most=100)
    times = [one.time for one in found]
    assert [time for time in times if time != "the"] == [STAMP.format(number) for number in range(3908, 4000)]
    assert [found[at - 1].pod for at, time in enumerate(times) if time == "the"] == [f"p{rank}" for rank in range(8)]
