"""IPv4 and IPv6: what is listened on, and how pods are asked."""

from __future__ import annotations

import socket

import aiohttp
import pytest
from aiohttp import web
from tunesmith import apply, observe
from tunesmith.addresses import host_port
from tunesmith.agent.settings import Settings as AgentSettings
from tunesmith.apply import Applier
from tunesmith.gateway.settings import Settings as GatewaySettings
from tunesmith.observe import Observer
from tunesmith.serving.contract import AgentStatus, State
from tunesmith.settings import Settings
from unit.operator.builders import pod


def has_ipv6() -> bool:
    """Whether this machine's loopback has an address of it."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
STATE = State(revision=1, model_name="m", model_path="/m", max_lora_rank=8, max_loras=1, max_cpu_loras=1, adapters=[])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def test_an_ipv6_address_in_a_url_has_brackets() -> None:
    assert [host_port(host, 80) for host in ("10.0.0.7", "fd00::7", "x-0.x")] == [
        "10.0.0.7:80",
        "[fd00::7]:80",
        "x-0.x:80",
    ]


@ipv6
@pytest.mark.parametrize(
    "host", [AgentSettings().agent_host, GatewaySettings(engines="x").host], ids=["agent", "gateway"]
)
async def test_agent_and_gateway_listen_on_both_families(host: str) -> None:
    runner, port = web.AppRunner(web.Application()), free_port()
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, port), timeout=5).close()
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    "host", [AgentSettings().agent_host, GatewaySettings(engines="x").host], ids=["agent", "gateway"]
)
async def test_agent_and_gateway_serve_where_ipv6_is_switched_off(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class WithoutIPv6(socket.socket):
        def __init__(self, family: int = -1, *rest: object, **more: object) -> None:
            if family == socket.AF_INET6:
                raise OSError(97, "Address family not supported by protocol")
            super().__init__(family, *rest, **more)  # type: ignore[arg-type]

    runner, port = web.AppRunner(web.Application()), free_port()
    await runner.setup()
    monkeypatch.setattr(socket, "socket", WithoutIPv6)
    try:
        await web.TCPSite(runner, host, port).start()
        assert [address[:2] for address in runner.addresses] == [("0.0.0.0", port)]
    finally:
        await runner.cleanup()


@ipv6
async def test_pods_are_asked_and_told_at_addresses_of_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    said, told = AgentStatus(revision=1, engine="Ready", ready=True), []

    async def status(_: web.Request) -> web.Response:
        return web.Response(text=said.model_dump_json())

    async def state(request: web.Request) -> web.Response:
        told.append(await request.json())
        return web.Response()

    app = web.Application()
    app.add_routes([web.get("/status", status), web.put("/state", state)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "::1", 0).start()
        for module in (observe, apply):
            monkeypatch.setattr(module, "AGENT_PORT", runner.addresses[0][1])
        async with aiohttp.ClientSession() as http:
            one, observer = pod("p0", podIP="::1"), Observer(None, http, Settings())  # type: ignore[arg-type]
            assert await observer._agent(one) == said
            assert await observer._ask(AgentStatus, one, observe.AGENT_PORT, "/status") == said
            await Applier(None, http, None)._tell("::1", STATE, ["token"])  # type: ignore[arg-type]
        assert told == [STATE.body()]
    finally:
        await runner.cleanup()
