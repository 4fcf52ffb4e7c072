"""The Lease, against an API server that goes away for a moment. tests/integration asks a real one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tunesmith.kube import lease as leases
from tunesmith.kube.client import Client
from tunesmith.kube.lease import Lease, LeaseLost
from unit.operator.servers import as_kubernetes


class Kubernetes:
    """Keeps one Lease."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.breaks: str | None = None
        self.broke = 0

    async def answer(self, request: web.Request) -> web.Response:
        if self.breaks == "connection":
            self.broke += 1
            request.transport.abort()  # type: ignore[union-attr]
            return web.Response()
        if self.breaks == "page":  # of a load balancer in between
            self.broke += 1
            return web.Response(text="<html>", content_type="text/html")
        if request.method == "GET":
            found = self.lease
            return web.json_response(found or {"message": "not found"}, status=200 if found else 404)
        self.lease = await request.json()
        version = int(self.lease["metadata"].get("resourceVersion", 0)) + 1
        self.lease["metadata"]["resourceVersion"] = str(version)
        return web.json_response(self.lease)


@pytest.fixture
def kubernetes() -> Kubernetes:
    return Kubernetes()


@pytest.fixture
async def lease(kubernetes: Kubernetes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Lease]:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.01)
    monkeypatch.setattr(leases, "RETRY_SECONDS", 0.01)
    async with as_kubernetes(kubernetes.answer, tmp_path, monkeypatch), Client() as client:
        yield Lease(client, "ns", "me")


@pytest.mark.parametrize("how", ["connection", "page"])
async def test_an_api_server_that_breaks_off_for_a_moment_costs_no_leader(
    lease: Lease, kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    kubernetes.breaks = how
    assert not await lease._attempt(), "who waits goes on waiting"
    kubernetes.breaks = None
    await lease.acquire()
    kubernetes.breaks, kubernetes.broke = how, 0
    monkeypatch.setattr(leases, "DURATION_SECONDS", 0.3)
    with pytest.raises(LeaseLost, match="in time"):
        await lease.keep()
    assert kubernetes.broke > 3, "it tried until its time was over"
