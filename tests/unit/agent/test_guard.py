"""The guard as an ASGI application, without an engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tunesmith.agent import guard
from tunesmith.agent.guard import Guard

TOKEN = "0123456789abcdef"


class Engine:
    """Stands for the engine: answers what the test says, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes]] = []
        self.statuses: list[int] = []
        self.go = asyncio.Event()
        self.go.set()
        self.began = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            self.asked.append(("lifespan", b""))
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.asked.append((scope["path"], body))
        self.began.set()
        await self.go.wait()
        status = self.statuses.pop(0) if self.statuses else 200
        await send({"type": "http.response.start", "status": status, "headers": []})
        for part in (b"one ", b"two"):
            await send({"type": "http.response.body", "body": part, "more_body": part != b"two"})


class Client:
    """Sends requests into a guard."""

    def __init__(self, app: Guard) -> None:
        self.app = app

    async def __call__(
        self,
        method: str,
        path: str,
        body: bytes | list[bytes] = b"",
        headers: dict[str, str] | None = None,
        client: Any = ("127.0.0.1", 1),
        **scope: Any,
    ) -> tuple[int, bytes]:
        parts = body if isinstance(body, list) else [body]
        messages = [
            {"type": "http.request", "body": part, "more_body": n + 1 < len(parts)} for n, part in enumerate(parts)
        ]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        raw = [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()]
        await self.app(
            {"type": "http", "method": method, "path": path, "headers": raw, "client": client, **scope}, receive, send
        )
        assert [m["type"] for m in sent].count("http.response.start") == 1
        return sent[0]["status"], b"".join(m.get("body", b"") for m in sent)

    async def ask(self, model: Any) -> tuple[int, bytes]:
        return await self("POST", "/v1/chat/completions", json.dumps({"model": model}).encode())

    async def admin(self, path: str, **body: Any) -> tuple[int, bytes]:
        method = "GET" if path.endswith("in-flight") else "POST"
        return await self(method, path, json.dumps(body).encode(), {"X-Tunesmith-Token": TOKEN})


@pytest.fixture
def token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    monkeypatch.setenv("TUNESMITH_ADMIN_TOKEN_FILE", str(file))
    return file


@pytest.fixture
async def engine(token_file: Path) -> Engine:
    return Engine()


@pytest.fixture
async def client(engine: Engine) -> Client:
    return Client(Guard(engine))


ADMIN = ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/tunesmith/hold", "/tunesmith/in-flight"]


@pytest.mark.parametrize("path", sorted(guard.ALLOWED))
async def test_listed_paths_reach_the_engine(client, engine, path):
    method = guard.ALLOWED[path][0]
    assert await client(method, path, b'{"model": "a"}', client=("10.0.0.7", 1)) == (200, b"one two")
    assert engine.asked == [(path, b'{"model": "a"}')]


@pytest.mark.parametrize(
    "path",
    ["/", "/adapters", "/adapters/x", "/invocations", "/v1/models/", "//v1/models", "/v1/../adapters", "/V1/models",
     "/health/x", "/metrics/", "/v1/load_lora_adapter/", "/v1/chat/completions/render", "/docs", ""],
)  # fmt: skip
async def test_other_paths_do_not_exist_even_for_the_admin(client, engine, path):
    for method in ("GET", "POST", "DELETE", "OPTIONS"):
        status, body = await client(method, path, headers={"X-Tunesmith-Token": TOKEN})
        assert status == 404
        assert json.loads(body)["error"] | {"message": ""} == {
            "message": "",
            "type": "NotFoundError",
            "param": None,
            "code": 404,
        }
    assert engine.asked == []


async def test_other_methods_are_refused(client, engine):
    assert (await client("DELETE", "/v1/models"))[0] == 405
    assert (await client("GET", "/v1/completions"))[0] == 405
    assert engine.asked == []


@pytest.mark.parametrize("path", ADMIN)
@pytest.mark.parametrize(
    ("headers", "peer"),
    [
        ({}, ("127.0.0.1", 1)),
        ({"X-Tunesmith-Token": ""}, ("127.0.0.1", 1)),
        ({"X-Tunesmith-Token": TOKEN[:-1]}, ("127.0.0.1", 1)),
        ({"Authorization": f"Bearer {TOKEN}"}, ("127.0.0.1", 1)),
        ({"X-Tunesmith-Token": TOKEN}, ("10.0.0.7", 1)),
        ({"X-Tunesmith-Token": TOKEN}, ("::ffff:10.0.0.7", 1)),
        ({"X-Tunesmith-Token": TOKEN}, ("fe80::1", 1)),
        ({"X-Tunesmith-Token": TOKEN}, ("localhost", 1)),
        ({"X-Tunesmith-Token": TOKEN}, None),
        ({"X-Tunesmith-Token": TOKEN, "X-Forwarded-For": "127.0.0.1"}, ("127.0.0.1", 1)),
        ({"X-Tunesmith-Token": TOKEN, "Forwarded": "for=127.0.0.1"}, ("127.0.0.1", 1)),
    ],
)
async def test_administration_needs_the_token_and_the_pod_itself(client, engine, path, headers, peer):
    status, body = await client("POST", path, b"{}", headers, peer)
    assert status == 403
    assert json.loads(body)["error"]["type"] == "PermissionDeniedError"
    assert engine.asked == []


@pytest.mark.parametrize("peer", [("127.0.0.1", 1), ("127.0.0.2", 1), ("::1", 1), ("::ffff:127.0.0.1", 1)])
async def test_the_agent_administers(client, engine, peer):
    status, _ = await client("POST", "/v1/load_lora_adapter", b"{}", {"X-Tunesmith-Token": TOKEN}, peer)
    assert status == 200
    assert engine.asked == [("/v1/load_lora_adapter", b"{}")]


async def test_a_rotated_token_counts_at_once_and_an_empty_one_never(client, token_file):
    token_file.write_text("another")
    assert (await client.admin("/tunesmith/in-flight"))[0] == 403
    assert (await client("GET", "/tunesmith/in-flight", headers={"X-Tunesmith-Token": "another"}))[0] == 200
    token_file.write_text("\n")
    assert (await client("GET", "/tunesmith/in-flight", headers={"X-Tunesmith-Token": ""}))[0] == 403
    token_file.unlink()
    assert (await client("GET", "/tunesmith/in-flight", headers={"X-Tunesmith-Token": ""}))[0] == 403


async def test_the_path_is_judged_as_the_router_sees_it(client, engine):
    assert (await client("POST", "/llm/adapters", root_path="/llm"))[0] == 404
    assert (await client("POST", "/llm/v1/load_lora_adapter", root_path="/llm", client=("10.0.0.7", 1)))[0] == 403
    assert (await client("GET", "/llm/health", root_path="/llm"))[0] == 200
    assert (await client("GET", "/llmhealth", root_path="/llm"))[0] == 404


async def test_websockets_are_closed_and_lifespan_passes(client, engine):
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await client.app({"type": "websocket", "path": "/v1/realtime", "headers": []}, receive, send)
    assert [m["type"] for m in sent] == ["websocket.close"]
    assert engine.asked == []
    await client.app({"type": "lifespan"}, receive, send)
    assert engine.asked == [("lifespan", b"")]


async def test_a_body_in_parts_arrives_whole(client, engine):
    parts = [b'{"model": "a", ', b"", b'"prompt": "', b"x" * 100_000, b'"}']
    assert (await client("POST", "/v1/completions", parts))[0] == 200
    assert engine.asked == [("/v1/completions", b"".join(parts))]


@pytest.mark.parametrize("parts", [1, 3], ids=["at once", "in parts"])
async def test_a_body_that_is_too_long_to_tell_its_model_reaches_no_engine(client, engine, monkeypatch, parts):
    """Whatever is passed on unread may name a version that is on trial, or an adapter that is held."""
    monkeypatch.setattr(guard, "MAX_BODY", 1000)
    body = b'{"model": "@a", "prompt": "' + b"x" * 3000 + b'"}'
    size = -(-len(body) // parts)
    status, said = await client("POST", "/v1/completions", [body[i : i + size] for i in range(0, len(body), size)])
    assert status == 413
    assert json.loads(said)["error"]["message"] == "A request may have 1000 bytes."
    assert engine.asked == []
    longest = body.replace(b"@a", b"aa")[:998] + b'"}'
    assert (await client("POST", "/v1/completions", longest))[0] == 200
    assert engine.asked == [("/v1/completions", longest)]


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (b'{"model": "a"}', "a"),
        (b'{"model": "a", "model": "b"}', "b"),
        ('{"model": "ä"}'.encode("utf-16"), "ä"),
        (b"{}", ""),
        (b'{"model": null}', ""),
        (b'{"model": ["a"]}', guard.ANY),
        (b"[]", guard.ANY),
        (b"{", guard.ANY),
        (b"", guard.ANY),
        (b"\xff\xfe\xfd", guard.ANY),
        (b"[" * 200_000, guard.ANY),
    ],
    ids=lambda value: str(value)[:20],
)
async def test_the_model_is_read_as_the_engine_reads_it(client, engine, body, model):
    engine.go.clear()
    request = asyncio.create_task(client("POST", "/v1/completions", body))
    await engine.began.wait()
    assert json.loads((await client.admin("/tunesmith/in-flight"))[1])["models"].keys() == {model}
    engine.go.set()
    assert (await request)[0] == 200
    assert json.loads((await client.admin("/tunesmith/in-flight"))[1])["models"] == {}


async def test_held_requests_wait_for_the_release_and_others_do_not(client, engine):
    await client.admin("/tunesmith/hold", model="a", seconds=30)
    held = asyncio.create_task(client.ask("a"))
    await asyncio.sleep(0.02)
    assert (await client.ask("b"))[0] == 200
    assert len(engine.asked) == 1
    assert json.loads((await client.admin("/tunesmith/in-flight"))[1])["models"] == {}, "what waits uses nothing"
    await client.admin("/tunesmith/release", model="a")
    assert (await held)[0] == 200


async def test_a_hold_ends_by_itself(client):
    await client.admin("/tunesmith/hold", model="a", seconds=0.05)
    assert (await asyncio.wait_for(client.ask("a"), 1))[0] == 200
    assert (await asyncio.wait_for(client.ask("a"), 0.03))[0] == 200


async def test_a_hold_may_be_prolonged_but_never_beyond_the_bound(client, monkeypatch):
    monkeypatch.setattr(guard, "MAX_HOLD", 0.2)
    for _ in range(3):
        await client.admin("/tunesmith/hold", model="a", seconds=1e9)
    held = asyncio.create_task(client.ask("a"))
    await asyncio.sleep(0.1)
    assert not held.done()
    assert (await asyncio.wait_for(held, 1))[0] == 200


async def test_a_request_that_fell_into_the_gap_of_a_swap_is_sent_again(client, engine):
    engine.go.clear()
    engine.statuses = [404, 200]
    request = asyncio.create_task(client.ask("a"))
    await engine.began.wait()
    await client.admin("/tunesmith/hold", model="a")
    engine.go.set()
    await asyncio.sleep(0.02)
    assert not request.done()
    await client.admin("/tunesmith/release", model="a")
    assert await request == (200, b"one two")
    assert [path for path, _ in engine.asked] == ["/v1/chat/completions"] * 2
    assert engine.asked[0] == engine.asked[1]


async def test_a_404_without_a_swap_is_the_answer(client, engine):
    engine.statuses = [404]
    assert await client.ask("a") == (404, b"one two")
    assert len(engine.asked) == 1


async def test_a_request_that_breaks_is_no_longer_in_flight(token_file):
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("engine died")

    client = Client(Guard(broken))
    with pytest.raises(RuntimeError):
        await client.ask("a")
    assert json.loads((await client.admin("/tunesmith/in-flight"))[1])["models"] == {}


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"model": "a", "seconds": "long"}', b'{"model"'])
async def test_a_bad_order_to_the_guard_is_refused(client, body):
    status, _ = await client("POST", "/tunesmith/hold", body, {"X-Tunesmith-Token": TOKEN})
    assert status == 400


def test_the_guard_needs_nothing_but_the_standard_library():
    import ast
    import inspect
    import sys

    tree = ast.parse(inspect.getsource(guard))
    names = {n.name for node in ast.walk(tree) if isinstance(node, ast.Import) for n in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


@pytest.fixture
def keys(tmp_path: Path, token_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "keys"
    (folder / "..data").mkdir(parents=True)
    (folder / "team-a").write_text("key-a\n")
    (folder / "team-b").write_text("key-b")
    (folder / "empty").write_text("")
    monkeypatch.setenv("TUNESMITH_API_KEYS_FOLDER", str(folder))
    monkeypatch.setattr(guard, "KEYS_SECONDS", 0.0)
    return folder


BODY = b'{"model": "a"}'


@pytest.mark.parametrize("path", sorted(guard.KEYED))
async def test_inference_needs_one_of_the_keys(keys, path):
    client = Client(Guard(Engine()))
    method = guard.ALLOWED[path][0]
    for header in ("Bearer key-a", "bearer key-b", "Bearer  key-a"):
        assert (await client(method, path, BODY, {"Authorization": header}))[0] == 200
    assert (await client(method, path, BODY, {"X-Api-Key": "key-b"}))[0] == 200
    for header in ("", "Bearer", "Bearer ", "Bearer key", "Bearer key-ab", "Basic key-a", "key-a", "Bearer key-a\n x"):
        status, body = await client(method, path, BODY, {"Authorization": header})
        assert (status, json.loads(body)["error"]["type"]) == (401, "AuthenticationError"), header
    assert (await client("OPTIONS", path))[0] == 200 or method == "GET"


async def test_probes_and_the_agent_need_no_key(keys):
    client = Client(Guard(Engine()))
    for path in ("/health", "/metrics", "/ping", "/version"):
        assert (await client("GET", path))[0] == 200
    assert (await client("GET", "/v1/models", headers={"X-Tunesmith-Token": TOKEN}))[0] == 200
    assert (await client("GET", "/v1/models", headers={"X-Tunesmith-Token": TOKEN}, client=("10.0.0.7", 1)))[0] == 401
    assert (await client("POST", "/v1/load_lora_adapter", b"{}", {"Authorization": "Bearer key-a"}))[0] == 403


async def test_changed_keys_count_and_none_admits_nobody(keys):
    client = Client(Guard(Engine()))
    ask = {"Authorization": "Bearer key-a"}
    assert (await client("GET", "/v1/models", headers=ask))[0] == 200
    (keys / "team-a").write_text("key-c")
    assert (await client("GET", "/v1/models", headers=ask))[0] == 401
    assert (await client("GET", "/v1/models", headers={"Authorization": "Bearer key-c"}))[0] == 200
    for name in ("team-a", "team-b"):
        (keys / name).unlink()
    assert (await client("GET", "/v1/models", headers={"Authorization": "Bearer "}))[0] == 401
    (keys / "empty").unlink()
    (keys / "..data").rmdir()
    keys.rmdir()
    assert (await client("GET", "/v1/models", headers={"Authorization": "Bearer key-c"}))[0] == 401


async def test_versions_that_are_tried_out_are_for_the_agent_only(client, engine):
    body = b'{"model": "@a"}'
    assert (await client("POST", "/v1/completions", body, client=("10.0.0.7", 1)))[0] == 404
    assert engine.asked == []
    await client.admin("/tunesmith/hold", model="a")
    for model in (b'{"model": "@a"}', b'{"model": "a"}'):
        answer = await asyncio.wait_for(client("POST", "/v1/completions", model, {"X-Tunesmith-Token": TOKEN}), 1)
        assert answer[0] == 200, "the agent is not held"


async def test_a_key_that_is_being_removed_takes_no_other_with_it(keys):
    (keys / "leaving").symlink_to("..data/leaving")  # the kubelet swaps ..data first, and then tidies up
    client = Client(Guard(Engine()))
    assert (await client("GET", "/v1/models", headers={"Authorization": "Bearer key-a"}))[0] == 200
    assert (await client("GET", "/v1/models", headers={"Authorization": "Bearer "}))[0] == 401
