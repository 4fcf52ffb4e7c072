"""A thousand adapters: what of them is transferred, and what fits into the API server's objects."""

from __future__ import annotations

from typing import Any

import aiohttp
from aiohttp import web
from tunesmith.api.modeldeployment import MAX_ADAPTERS, AdapterStatus, ModelDeployment, PodAdapter
from tunesmith.decide.adapters import MAX_STATUS_BYTES, fitted, wanted
from tunesmith.decide.modeldeployment import decide
from tunesmith.observe import Observer
from tunesmith.serving.contract import AgentStatus
from tunesmith.settings import Settings
from unit.operator.builders import finished, pod, serve, world


def status(number: int, pods: int = 0, message: str | None = None, uri: str = "pvc://store/a") -> AdapterStatus:
    details = [PodAdapter(pod=f"pod-{n}", state="Failed", reason="CheckFailed", message=message) for n in range(pods)]
    return AdapterStatus(name=f"a{number}", state="Failed", uri=uri, message=message, pods=details)


def size(reported: list[AdapterStatus]) -> int:
    return sum(len(one.model_dump_json(by_alias=True, exclude_none=True)) for one in reported)


def test_a_few_adapters_are_told_of_in_full() -> None:
    reported = [status(n, pods=16, message="m" * 1024) for n in range(20)]
    assert fitted(reported) == reported


def test_of_many_that_fail_everywhere_each_keeps_its_reason_and_as_much_of_its_message_as_there_is_room_for() -> None:
    for count, message, details, left in ((300, 1024, 0, 1024), (MAX_ADAPTERS, 1024, 0, 200), (600, 500, 0, 500)):
        found = fitted([status(n, pods=16, message="m" * message) for n in range(count)])
        assert size(found) <= MAX_STATUS_BYTES
        assert len(found) == count
        assert {(len(one.pods), len(one.message or "")) for one in found} == {(details, left)}
    longest = fitted([status(n, 16, "m" * 1024, "hf://" + "a" * 1000) for n in range(MAX_ADAPTERS)])
    assert size(longest) <= MAX_STATUS_BYTES
    assert all(one.state == "Failed" and one.message for one in longest)


def test_no_more_adapters_are_selected_than_the_status_can_hold() -> None:
    jobs = tuple(finished("FineTuneJob", f"j{n:05}") for n in range(MAX_ADAPTERS + 10))
    body = serve(adapters=[{"name": "own", "uri": "pvc://store/a"}], adapterSelector={"matchLabels": {"a": "b"}})
    observed = world(body, selected=jobs)
    found = wanted(observed, ModelDeployment.model_validate(body))
    assert [len(found), found[0].name, found[-1].name] == [MAX_ADAPTERS, "own", f"j{MAX_ADAPTERS - 2:05}"]


def test_what_does_not_fit_into_a_config_map_is_said_before_the_api_server_refuses_it() -> None:
    smoke = {"prompt": "x" * 8000}
    adapters = [{"name": f"a{n}", "uri": f"pvc://store/{n}", "smoke": smoke} for n in range(200)]
    decision = decide(world(serve(adapters=adapters)), Settings())
    assert decision is not None
    ready = decision.status.body()["conditions"][0]
    assert (ready["reason"], decision.apply) == ("ConfigError", ())
    assert "200 adapters takes" in ready["message"]


async def test_an_agent_that_says_the_same_again_is_not_read_again(monkeypatch: Any) -> None:
    said = AgentStatus(revision=1, engine="Ready", ready=True)
    seen: list[tuple[str | None, int]] = []

    async def answer(request: web.Request) -> web.Response:
        tag, given = f'"{said.revision}"', request.headers.get("If-None-Match")
        code = 304 if given == tag else 200
        seen.append((given, code))
        return web.Response(status=code, text="" if code == 304 else said.model_dump_json(), headers={"ETag": tag})

    app = web.Application()
    app.router.add_get("/status", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    monkeypatch.setattr("tunesmith.observe.AGENT_PORT", runner.addresses[0][1])
    try:
        async with aiohttp.ClientSession() as http:
            observer = Observer(None, http, Settings())  # type: ignore[arg-type]
            one = pod("p0", podIP="127.0.0.1")
            assert await observer._agents([one]) == {"p0": said}
            assert await observer._agents([one]) == {"p0": said}
            said = said.model_copy(update={"revision": 2})
            assert await observer._agents([one]) == {"p0": said}
            other = {**one, "metadata": {**one["metadata"], "uid": "u-other"}}  # under the same address
            assert await observer._agents([other]) == {"p0": said}
        assert seen == [(None, 200), ('"1"', 304), ('"1"', 200), (None, 200)]
    finally:
        await runner.cleanup()
