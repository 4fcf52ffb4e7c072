"""The gateway between real HTTP servers on the loopback."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import threading
from io import BytesIO
from pathlib import Path

import aiohttp
import pytest
from prometheus_client import generate_latest
from tunesmith.agent import guard
from tunesmith.gateway import proxy
from tunesmith.gateway.__main__ import poll
from tunesmith.serving.routes import Count, Routes
from unit.gateway.engines import TOKEN, Engine, gateway, until

A, B = "127.0.0.2", "127.0.0.3"


async def test_a_request_goes_to_a_pod_that_serves_its_adapter(tmp_path: Path) -> None:
    one, two = Engine(A, "a"), Engine(B, "b")
    async with gateway([one, two], tmp_path) as gate:
        gate.route("a", "b")
        for _ in range(8):
            assert await gate.ask("a") == (200, {"by": A, "model": "a"})
            assert await gate.ask("b") == (200, {"by": B, "model": "b"})
        assert {(await gate.ask("base"))[1]["by"] for _ in range(40)} == {A, B}
        assert (await gate.ask("other"))[0] == 404, "the engine's own answer"


async def test_of_the_pods_that_serve_it_the_one_with_fewest_requests_is_asked(tmp_path: Path) -> None:
    one, two = Engine(A), Engine(B)
    async with gateway([one, two], tmp_path) as gate:
        one.go.clear()
        two.go.clear()
        asking = [asyncio.create_task(gate.ask()) for _ in range(10)]
        await until(lambda: len(one.asked) + len(two.asked) == 10)
        assert len(one.asked) == len(two.asked) == 5
        one.go.set()
        two.go.set()
        assert {status for status, _ in await asyncio.gather(*asking)} == {200}


async def test_a_stream_is_passed_on_as_it_comes(tmp_path: Path) -> None:
    engine = Engine(A)
    async with gateway([engine], tmp_path) as gate:
        engine.go.clear()
        body = {"model": "base", "stream": True}
        asking = asyncio.create_task(gate.http.post(f"{gate.url}/v1/chat/completions", json=body))
        await until(lambda: engine.asked)
        engine.go.set()
        async with await asking as response:
            engine.go.clear()
            first = await response.content.readline()
            assert first == b"data: 0\n", "while the engine has not said the rest"
            assert response.headers["Content-Type"] == "text/event-stream"
            engine.go.set()
            assert (await response.content.read()).count(b"data: ") == 2


async def test_a_client_that_goes_away_takes_its_request_with_it(tmp_path: Path) -> None:
    engine = Engine(A)
    async with gateway([engine], tmp_path) as gate:
        engine.go.clear()
        waiting = asyncio.create_task(gate.ask())
        await until(lambda: engine.asked)
        waiting.cancel()
        await until(lambda: engine.cancelled == 1)
        engine.go.set()
        engine.tokens = 10**6
        response = await gate.http.post(f"{gate.url}/v1/completions", json={"model": "base", "stream": True})
        engine.go.clear()
        await response.content.readline()
        response.close()
        await until(lambda: engine.cancelled == 2)
        await until(lambda: gate.proxy.in_flight == 0)
        assert gate.pods.known[A].in_flight == 0


async def test_what_the_engine_cuts_short_is_cut_short_for_the_client(tmp_path: Path) -> None:
    engine = Engine(A)
    engine.breaks_after = 2
    async with gateway([engine], tmp_path) as gate:
        with pytest.raises(aiohttp.ClientPayloadError):
            await gate.ask(stream=True)
        engine.breaks_after = 0
        status, body = await gate.ask()
        assert (status, body["error"]["code"]) == (502, 502)
        assert len(engine.asked) == 2, "what may have been begun is not sent again"


async def test_a_pod_that_cannot_be_reached_costs_no_request(tmp_path: Path) -> None:
    one, two = Engine(A), Engine(B)
    async with gateway([one, two], tmp_path) as gate:
        await one.stop()
        answers = await asyncio.gather(*(gate.ask() for _ in range(20)))
        assert {body["by"] for _, body in answers} == {B}
        assert len(two.asked) == 20


async def test_a_request_waits_for_the_pod_of_its_adapter_and_is_not_told_by_another_that_there_is_none(
    tmp_path: Path,
) -> None:
    one, two = Engine(A, "a"), Engine(B)
    async with gateway([one, two], tmp_path) as gate:
        gate.route("a", hold_seconds=20)
        await one.stop()
        asking = asyncio.create_task(gate.ask("a"))
        await until(lambda: gate.held == 1)
        await one.start_engine(gate.ports[0])  # type: ignore[attr-defined]
        assert await asking == (200, {"by": A, "model": "a"})
        assert not two.asked


async def test_a_canary_whose_pod_cannot_be_reached_costs_no_request(tmp_path: Path) -> None:
    one, two = Engine(A, "a@canary"), Engine(B, "a")
    async with gateway([one, two], tmp_path) as gate:
        gate.route("a", splits={"a": 100})
        await one.stop()
        answers = await asyncio.gather(*(gate.ask("a") for _ in range(5)))
        assert answers == [(200, {"by": B, "model": "a"})] * 5
        assert gate.table.trials == {}, "these say nothing of the trial"


async def test_what_is_the_connections_own_is_not_passed_on(tmp_path: Path) -> None:
    engine = Engine(A)
    async with gateway([engine], tmp_path) as gate:
        lines = (
            b"Connection: Upgrade, HTTP2-Settings",
            b"Upgrade: h2c",
            b"HTTP2-Settings: AAMAAABkAAQAAP__",
            b"X-Mine: 1",
        )
        answer = await gate.send(b'{"model": "base"}', *lines)
        assert answer.split()[1] == b"200", answer
        assert engine.headers[0].keys() == {"Host", "Content-Length", "Connection", "X-Mine"}


async def test_a_body_that_was_packed_is_passed_on_unpacked(tmp_path: Path) -> None:
    engine = Engine(A, "a")
    async with gateway([engine], tmp_path) as gate:
        gate.route("a")
        packed = b"Content-Encoding: gzip", b"Content-Type: application/json"
        answer = await gate.send(gzip.compress(b'{"model": "a"}'), *packed)
        assert answer.split()[1] == b"200", answer
        assert engine.asked == [("/v1/completions", {"model": "a"})]
        answer = await gate.send(b"no gzip", *packed)
        assert answer.split()[1] == b"400", answer
        assert b"BadRequestError" in answer


@pytest.mark.parametrize(
    "parts",
    [
        [b'data: {"error": {"message": "x"}}\n\n'],
        [b'data: {"choices": []}\n\ndata: {"error": {"message": "x"}}\n\n'],
        [b'data: {"choices": []}\n\ndata: {"er', b'ror": {"message": "x"}}\n\n'],
    ],
)
async def test_an_answer_that_ends_with_an_error_is_one_however_its_bytes_come(
    tmp_path: Path, parts: list[bytes]
) -> None:
    engine = Engine(A, "a", "a@canary")
    async with gateway([engine], tmp_path) as gate:
        gate.route("a", splits={"a": 100})
        engine.says = parts
        assert await gate.ask("a", stream=True) == (200, b"".join(parts).decode())
        engine.says = [rb'data: {"choices": [{"text": "\ndata: {\"error\""}]}' + b"\n\n"]
        await gate.ask("a", stream=True)
        assert gate.table.trials["a.0"].new == Count(requests=2, errors=1), "what a model says is no error"


async def test_requests_are_split_by_weight(tmp_path: Path) -> None:
    engine = Engine(A, "a", "a@canary")
    async with gateway([engine], tmp_path, seed=7) as gate:
        gate.route("a", splits={"a": 20})
        total, percent = 600, 0.2
        for _ in range(total // 50):
            await asyncio.gather(*(gate.ask("a", n=1.5) for _ in range(50)))
        tried = [body for _, body in engine.asked if body["model"] == "a@canary"]
        spread = math.sqrt(total * percent * (1 - percent))
        assert abs(len(tried) - total * percent) < 4 * spread
        assert tried[0] == {"model": "a@canary", "prompt": "x", "n": 1.5}, "nothing else of the request changes"
        counts = gate.table.trials["a.0"]
        assert counts.new == Count(requests=len(tried))
        assert counts.old == Count(requests=total - len(tried))
        assert (await gate.ask("base"))[1]["model"] == "base"


async def test_errors_of_each_version_are_counted_and_a_new_step_begins_at_nothing(tmp_path: Path) -> None:
    engine = Engine(A, "a", "a@canary")
    async with gateway([engine], tmp_path) as gate:
        gate.route("a", splits={"a": 100})
        await gate.ask("a")
        engine.status = 503
        await gate.ask("a")
        engine.status, engine.breaks_after = 200, 1
        with pytest.raises(aiohttp.ClientPayloadError):
            await gate.ask("a", stream=True)
        engine.breaks_after, engine.status = None, 400
        await gate.ask("a")
        assert gate.table.trials["a.0"].new == Count(requests=4, errors=2), "a bad request is the client's own"
        routes = gate.table.routes
        later = {"a": routes.splits["a"].model_copy(update={"trial": "a.1", "percent": 0})}
        gate.table.offer(routes.model_copy(update={"revision": routes.revision + 1, "splits": later}))
        engine.status = 200
        await gate.ask("a")
        assert gate.table.trials.keys() == {"a.1"}
        assert gate.table.trials["a.1"].old == Count(requests=1)


async def test_a_version_that_has_just_gone_costs_no_request(tmp_path: Path) -> None:
    engine = Engine(A, "a", "a@canary")
    async with gateway([engine], tmp_path) as gate:
        gate.route("a", splits={"a": 100})
        engine.adapters.remove("a@canary")  # and the gateway has not seen it yet
        assert await gate.ask("a") == (200, {"by": A, "model": "a"})
        await gate.pods.look()
        assert await gate.ask("a") == (200, {"by": A, "model": "a"})
        assert gate.table.trials == {}, "these say nothing of the trial"


@pytest.mark.parametrize("model", ["a@canary", "@a"])
async def test_clients_cannot_name_what_is_being_tried(tmp_path: Path, model: str) -> None:
    async with gateway([Engine(A, "a", "a@canary", "@a")], tmp_path) as gate:
        gate.route("a", splits={"a": 10})
        assert (await gate.ask(model))[0] == 404
        async with gate.http.get(f"{gate.url}/v1/models") as response:
            assert [card["id"] for card in (await response.json())["data"]] == ["base", "a"]


async def test_requests_wait_while_there_is_no_pod(tmp_path: Path) -> None:
    engines: list[Engine] = []
    async with gateway(engines, tmp_path) as gate:
        gate.route("a", hold_seconds=20, max_held=5)
        asking = [asyncio.create_task(gate.ask("a")) for _ in range(5)]
        await until(lambda: gate.held == 5)
        async with gate.http.get(f"{gate.control}/status") as response:
            assert (await response.json())["held"] == 5
        async with gate.http.post(f"{gate.url}/v1/completions", json={"model": "a"}) as response:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) > 0
            assert (await response.json())["error"]["type"] == "ServiceUnavailableError"
        engine = Engine(A)
        engine.loads.add("a")
        engines.append(engine)
        await engine.start(*gate.ports)  # type: ignore[attr-defined]
        await gate.pods.look()
        await asyncio.sleep(0.05)
        assert not engine.asked, "the pod is there, but its adapter is on its way"
        engine.loads.clear()
        engine.adapters.add("a")
        assert await asyncio.gather(*asking) == [(200, {"by": A, "model": "a"})] * 5
        assert gate.held == 0


async def test_nobody_waits_longer_than_is_allowed_and_who_gives_up_does_not_count(tmp_path: Path) -> None:
    async with gateway([], tmp_path) as gate:
        gate.route(hold_seconds=0.2)
        status, body = await gate.ask()
        assert status == 503
        assert "in time" in body["error"]["message"]
        gate.route(hold_seconds=60)
        waiting = asyncio.create_task(gate.ask())
        await until(lambda: gate.held == 1)
        waiting.cancel()
        await until(lambda: gate.held == 0)


async def test_keys_are_asked_for_before_anything_waits_and_are_passed_on(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "alice").write_text("secret-of-alice\n")
    engine = Engine(A)
    async with gateway([engine], tmp_path, keys) as gate:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret-of-alice"}):
            assert (await gate.ask(headers=headers))[0] == 401
            async with gate.http.get(f"{gate.url}/v1/models", headers=headers) as response:
                assert response.status == 401
        assert not engine.asked
        assert (await gate.ask(headers={"Authorization": "Bearer secret-of-alice", "X-Mine": "1"}))[0] == 200
        [seen] = engine.headers
        assert seen["Authorization"] == "Bearer secret-of-alice"
        assert seen["X-Mine"] == "1"


async def test_the_admin_token_of_a_client_is_not_passed_on(tmp_path: Path) -> None:
    engine = Engine(A)
    async with gateway([engine], tmp_path) as gate:
        await gate.ask(headers={"X-Tunesmith-Token": "guessed"})
        assert not {"x-tunesmith-token", "X-Tunesmith-Token"} & engine.headers[0].keys()


@pytest.mark.parametrize("path", sorted(guard.INFERENCE))
async def test_what_infers_is_passed_on(tmp_path: Path, path: str) -> None:
    engine = Engine(A)
    async with gateway([engine], tmp_path) as gate:
        assert (await gate.ask(path=path))[0] == 200
        assert engine.asked == [(path, {"model": "base", "prompt": "x"})]
        async with gate.http.get(gate.url + path) as response:
            assert response.status == 405


CLOSED = [
    *sorted(guard.ENGINE_ADMIN | guard.GUARD_ADMIN), "/adapters", "/adapters/a", "/invocations", "/metrics", "/routes",
    "/status", "/v1/completions/", "/v1/completions/../load_lora_adapter", "//v1/completions", "/V1/completions",
    "/v1%2fload_lora_adapter", "/v1/completions%2f..%2fload_lora_adapter", "/docs", "/",
]  # fmt: skip


@pytest.mark.parametrize("path", CLOSED)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT"])
async def test_all_else_is_closed(tmp_path: Path, path: str, method: str) -> None:
    engine = Engine(A)
    async with gateway([engine], tmp_path) as gate:
        answer = await gate.send(b'{"model": "base"}', method=f"{method} {path}")
        assert answer.split()[1] in (b"404", b"405"), answer
        assert not engine.asked


async def test_a_body_that_is_too_long_is_refused(tmp_path: Path) -> None:
    engine = Engine(A)
    async with gateway([engine], tmp_path) as gate:
        body = BytesIO(b" " * (proxy.MAX_BODY + 1))
        async with gate.http.post(f"{gate.url}/v1/completions", data=body) as response:
            assert response.status == 413
            assert (await response.json())["error"]["code"] == 413
        assert not engine.asked
        assert (await gate.ask(prompt="x" * 5_000_000))[0] == 200
        assert len(engine.asked[0][1]["prompt"]) == 5_000_000
        assert engine.headers[0]["Content-Length"] == str(5_000_000 + len('{"model": "base", "prompt": ""}'))


async def test_an_agent_that_is_away_takes_no_engine_out_of_service(tmp_path: Path) -> None:
    engine = Engine(A, "a")
    async with gateway([engine], tmp_path) as gate:
        gate.route("a")
        await engine.stop()
        await engine.start_engine(gate.ports[0])  # type: ignore[attr-defined]
        await gate.pods.look()
        assert (await gate.ask("a"))[0] == 200


async def test_routes_come_from_the_operator_only_and_the_newest_count(tmp_path: Path) -> None:
    async with gateway([], tmp_path) as gate:
        new = Routes(revision=10, model_name="base", adapters=["a"])
        url, mine = f"{gate.control}/routes", {"Authorization": f"Bearer {TOKEN}"}
        answer = await gate.send(b"{}", b"Authorization: Bearer \xe9", port=gate.control, method="PUT /routes")
        assert answer.split()[1] == b"401", "a header may be any bytes"
        for headers, body, status in (
            ({}, new.body(), 401),
            ({"Authorization": "Bearer guessed"}, new.body(), 401),
            (mine, {"revision": "x"}, 422),
            (mine, new.body(), 200),
            (mine, {**new.body(), "revision": 9}, 409),
            (mine, new.body(), 200),
        ):
            async with gate.http.put(url, json=body, headers=headers) as response:
                assert response.status == status, await response.text()
        assert gate.table.routes == new
        (tmp_path / "routes.json").write_text(json.dumps(new.body() | {"revision": 9, "adapters": []}))
        assert gate.table.poll() is None
        assert gate.table.routes == new
        (tmp_path / "routes.json").write_text(json.dumps(new.body() | {"revision": 11, "adapters": ["b"]}))
        assert gate.table.poll() is None
        assert gate.table.routes.adapters == ["b"]
        (tmp_path / "routes.json").write_text("{")
        assert "routes.json" in str(gate.table.poll())
        assert gate.table.routes.adapters == ["b"]


async def test_routes_that_are_mounted_and_routes_that_are_sent_meet_in_one_thread(tmp_path: Path) -> None:
    async with gateway([], tmp_path) as gate:
        taken, offer = [], gate.table.offer

        def offered(routes: Routes) -> bool:
            taken.append(threading.get_ident())
            return offer(routes)

        gate.table.offer = offered  # type: ignore[method-assign]
        (tmp_path / "routes.json").write_text(Routes(revision=5, model_name="base").model_dump_json(by_alias=True))
        polling = asyncio.create_task(poll(gate.table))
        await until(lambda: gate.table.routes and gate.table.routes.revision == 5)
        polling.cancel()
        assert taken == [threading.get_ident()], "or one of the two is lost where they come at once"


async def test_metrics_name_what_the_spec_names_and_nothing_of_clients(tmp_path: Path) -> None:
    engine = Engine(A, "a", "a@canary")
    async with gateway([engine], tmp_path) as gate:
        gate.route("a", splits={"a": 100})
        await gate.ask("a")
        await gate.ask("anything")
        page = generate_latest(gate.proxy.metrics.registry).decode()
        assert 'tunesmith_gateway_requests_total{code="200",model="a",version="canary"} 1.0' in page
        assert 'tunesmith_gateway_requests_total{code="404",model="",version="stable"} 1.0' in page
        assert "anything" not in page
