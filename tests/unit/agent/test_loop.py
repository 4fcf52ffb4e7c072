"""The agent with a fake engine that speaks vLLM's API as measured."""

from __future__ import annotations

import asyncio
import io
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tunesmith.agent import lookout, loop
from tunesmith.agent.engine import Engine, classify, message_of
from tunesmith.agent.loop import Agent, delay
from tunesmith.agent.metrics import Metrics
from tunesmith.agent.server import application, missing_model
from tunesmith.agent.settings import Settings
from tunesmith.agent.store import Source
from tunesmith.serving.contract import State, weight
from unit.agent.builders import make, make_base, pair

TOKEN = "secret-token"


class Vllm:
    """A fake engine with the guard's paths."""

    def __init__(self) -> None:
        self.loaded: dict[str, str] = {}
        self.calls: list[str] = []
        self.fail: Callable[[str, str], web.Response | None] = lambda name, path: None
        self.running: dict[str, Any] = {}
        self.answer: Callable[[str], str] = lambda model: f"I am {model}"
        self.api_key = ""
        self.down = False
        self.runner: Any = None
        self.port = 0

    async def start(self) -> None:
        app = web.Application(middlewares=[self.gate])
        app.router.add_get("/health", self.health)
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/v1/load_lora_adapter", self.load)
        app.router.add_post("/v1/unload_lora_adapter", self.unload)
        app.router.add_post("/v1/completions", self.say)
        app.router.add_post("/tunesmith/hold", self.hold)
        app.router.add_post("/tunesmith/release", self.release)
        app.router.add_get("/tunesmith/in-flight", self.in_flight)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", self.port)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    @web.middleware
    async def gate(self, request: web.Request, handler: Any) -> web.StreamResponse:
        return web.Response(status=503) if self.down else await handler(request)

    def error(self, status: int, message: str) -> web.Response:
        return web.json_response({"error": {"message": message, "code": status}}, status=status)

    async def health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def models(self, request: web.Request) -> web.Response:
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        cards = [{"id": "base", "root": "/base", "parent": None}]
        cards += [{"id": n, "root": p, "parent": "base"} for n, p in self.loaded.items()]
        return web.json_response({"data": cards})

    async def load(self, request: web.Request) -> web.Response:
        assert request.headers["X-Tunesmith-Token"] == TOKEN
        body = await request.json()
        name, path = body["lora_name"], body["lora_path"]
        self.calls.append(f"load {name}")
        if (answer := self.fail(name, path)) is not None:
            return answer
        if name in self.loaded:
            return self.error(400, f"The lora adapter '{name}' has already been loaded. If you want to ...")
        self.loaded[name] = path
        return web.Response(text="Success")

    async def unload(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        self.calls.append(f"unload {name}")
        if self.loaded.pop(name, None) is None:
            return self.error(404, f"The lora adapter '{name}' cannot be found.")
        return web.Response(text="Success")

    async def say(self, request: web.Request) -> web.Response:
        model = (await request.json())["model"]
        self.calls.append(f"say {model}")
        return web.json_response({"choices": [{"text": self.answer(model)}]})

    async def hold(self, request: web.Request) -> web.Response:
        self.calls.append(f"hold {(await request.json())['model']}")
        return web.json_response({})

    async def release(self, request: web.Request) -> web.Response:
        self.calls.append(f"release {(await request.json())['model']}")
        return web.json_response({})

    async def in_flight(self, _: web.Request) -> web.Response:
        return web.json_response({"models": self.running})


@pytest.fixture
async def vllm() -> AsyncIterator[Vllm]:
    fake = Vllm()
    await fake.start()
    yield fake
    await fake.runner.cleanup()


class Pod:
    """An agent under test."""

    def __init__(self, agent: Agent, root: Path) -> None:
        self.agent = agent
        self.root = root
        self.revision = 0

    def want(self, *adapters: dict[str, Any], **more: Any) -> None:
        self.revision += 1
        state = {
            "revision": self.revision, "modelName": "base", "modelPath": str(self.root / "base"), "maxLoraRank": 8,
            "adapters": list(adapters), **more,
        }  # fmt: skip
        draft = self.root / "draft"
        draft.write_text(json.dumps(state))
        os.replace(draft, self.root / "state.json")
        self.agent.desired.poll()

    def adapter(self, name: str) -> Any:
        return next((a for a in self.agent.status().adapters if a.name == name), None)

    async def settle(self, name: str, state: str = "Ready", seconds: float = 20) -> Any:
        await until(lambda: (a := self.adapter(name)) and a.state == state, seconds, lambda: self.adapter(name))
        return self.adapter(name)


async def until(what: Callable[[], Any], seconds: float = 20, says: Callable[[], Any] = lambda: "") -> None:
    end = asyncio.get_running_loop().time() + seconds
    while not what():
        assert asyncio.get_running_loop().time() < end, says()
        await asyncio.sleep(0.01)


@pytest.fixture
async def pod(tmp_path: Path, vllm: Vllm, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Pod]:
    monkeypatch.setattr(loop, "PROBE_DOWN", 0.02)
    monkeypatch.setattr(loop, "PROBE_UP", 0.02)
    monkeypatch.setattr(loop, "POLL", 0.05)
    monkeypatch.setattr(loop, "delay", lambda attempts: 0.1 * attempts)
    make_base(tmp_path / "base")
    (tmp_path / "token").write_text(TOKEN)
    settings = Settings(
        state_file=tmp_path / "state.json",
        admin_token_file=tmp_path / "token",
        adapters_folder=tmp_path / "adapters",
        guard_folder=tmp_path / "guard",
        engine_url=f"http://127.0.0.1:{vllm.port}",
        grace_seconds=0.1,
        resync_seconds=0.2,
    )
    async with aiohttp.ClientSession() as session:
        agent = Agent(settings, Engine(session, settings.engine_url, lambda: TOKEN), Metrics())
        task = asyncio.create_task(agent.run())
        yield Pod(agent, tmp_path)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def adapter(folder: Path, name: str = "a", **more: Any) -> dict[str, Any]:
    return {"name": name, "uri": f"file://{folder}", "path": str(folder), **more}


def version(folder: Path, text: str = "") -> Path:
    make(folder, pair(), note=text or folder.name)
    return folder


async def test_an_adapter_is_loaded_and_unloaded(pod, vllm, tmp_path):
    pod.want(adapter(version(tmp_path / "one")))
    found = await pod.settle("a")
    assert vllm.loaded == {"a": f"{tmp_path}/adapters/a/{found.digest}"}
    pod.want()
    await until(lambda: not vllm.loaded)
    await until(lambda: not (tmp_path / "adapters" / "a").exists())


async def test_nothing_is_done_again_while_nothing_changes(pod, vllm, tmp_path):
    pod.want(adapter(version(tmp_path / "one")))
    await pod.settle("a")
    await asyncio.sleep(0.6)
    assert vllm.calls == ["load a"]


async def test_a_swap_holds_requests_and_lets_them_go(pod, vllm, tmp_path):
    pod.want(adapter(version(tmp_path / "one")))
    old = await pod.settle("a")
    pod.want(adapter(version(tmp_path / "two")))
    await until(lambda: "release a" in vllm.calls)
    assert (pod.adapter("a").state, pod.adapter("a").digest == old.digest) == ("Ready", False)
    assert vllm.calls[1:] == ["hold a", "unload a", "load a", "release a"]


async def test_a_version_that_the_engine_refuses_is_taken_back(pod, vllm, tmp_path):
    pod.want(adapter(version(tmp_path / "one")))
    old = await pod.settle("a")
    path = vllm.loaded["a"]
    vllm.fail = lambda name, to: None if to == path else vllm.error(500, "LoRA rank 8 is greater than max_lora_rank 4.")
    pod.want(adapter(version(tmp_path / "two")))
    found = await pod.settle("a", "Failed")
    assert "greater than max_lora_rank" in found.message
    await until(lambda: pod.adapter("a").digest == old.digest)  # it is failed a moment before the old one is back
    await asyncio.sleep(0.6)
    assert vllm.loaded == {"a": path}
    assert vllm.calls[1:] == ["hold a", "unload a", "load a", "load a", "release a"], "not tried again"
    vllm.loaded.clear()  # the engine restarted
    await until(lambda: vllm.loaded == {"a": path})
    await pod.settle("a", "Failed")


async def test_a_transient_error_is_tried_again_with_growing_pauses(pod, vllm, tmp_path):
    vllm.fail = lambda name, path: vllm.error(500, "CUDA error: something odd")
    pod.want(adapter(version(tmp_path / "one")), adapter(version(tmp_path / "other"), "b"))
    await until(lambda: pod.adapter("a").attempts >= 3)
    assert vllm.calls.count("load a") <= 4
    assert pod.adapter("a").state == "Failed"
    vllm.fail = lambda name, path: None
    await pod.settle("a")
    await pod.settle("b")
    assert pod.adapter("a").attempts == 0
    assert pod.adapter("a").message is None


def test_pauses_double_up_to_a_minute():
    for attempts, most in ((1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (500, 60)):
        assert most * 0.8 <= delay(attempts) <= most


async def test_a_bad_adapter_is_failed_and_stops_no_other(pod, vllm, tmp_path):
    bad = version(tmp_path / "bad")
    (bad / "adapter_model.safetensors").unlink()
    pod.want(adapter(bad, "bad"), adapter(version(tmp_path / "one")), adapter(tmp_path / "nowhere", "lost"))
    await pod.settle("a")
    assert "is not there" in (await pod.settle("bad", "Failed")).message
    assert (await pod.settle("lost", "Failed")).attempts == 1
    await asyncio.sleep(0.5)
    assert pod.adapter("bad").attempts == 1
    assert list(vllm.loaded) == ["a"]


async def test_a_source_that_appears_is_served(pod, tmp_path):
    pod.want(adapter(tmp_path / "later"))
    await pod.settle("a", "Failed")
    make(tmp_path / "draft-folder", pair()).rename(tmp_path / "later")
    await pod.settle("a")


async def test_an_engine_that_restarts_gets_everything_back(pod, vllm, tmp_path):
    pod.want(adapter(version(tmp_path / "one"), required=True))
    await pod.settle("a")
    await until(lambda: pod.agent.status().ready)
    vllm.down = True
    vllm.loaded.clear()
    await until(lambda: pod.agent.status().engine == "Starting")
    assert not pod.agent.status().ready
    assert pod.adapter("a").state == "Loading"
    vllm.down = False
    await until(lambda: pod.agent.status().ready)
    assert list(vllm.loaded) == ["a"]
    assert pod.agent.metrics.registry.get_sample_value("tunesmith_agent_drift_repaired_total") == 1


async def test_a_fetched_adapter_is_served_and_a_mended_secret_is_noticed(pod, vllm, server, tmp_path):
    files = {p.name: p.read_bytes() for p in version(tmp_path / "one").iterdir()}
    items = "".join(
        f"<Contents><Key>a/{n}</Key><Size>{len(d)}</Size><ETag>e</ETag></Contents>" for n, d in files.items()
    )

    def answer(handler: Any) -> None:
        name = handler.path.removeprefix("/bucket/a/")
        if "Credential=me/" not in handler.headers["Authorization"]:
            handler.send(403)
        else:
            handler.file(files[name] if name in files else f"<R>{items}</R>".encode())

    server.answer = answer
    secret = tmp_path / "secret"
    secret.mkdir()
    keys = {"accessKeyId": "you", "secretAccessKey": "hush", "endpoint": f"http://{server.address}"}
    for name, value in keys.items():
        (secret / name).write_text(value)
    fetched = {"name": "a", "uri": "s3://bucket/a", "path": "/mnt/fetched/1", "fetch": True, "secret": str(secret)}
    pod.want(fetched, adapter(version(tmp_path / "two"), "b"))
    await pod.settle("b")
    found = await pod.settle("a", "Failed")
    assert "check the Secret" in found.message
    await asyncio.sleep(0.5)
    assert pod.adapter("a").attempts == 1
    (secret / "accessKeyId").write_text("me")
    await pod.settle("a", seconds=30)
    assert vllm.loaded.keys() == {"a", "b"}
    seen = len(server.seen)
    again = Agent(pod.agent.settings, pod.agent.engine, Metrics())
    task = asyncio.create_task(again.run())
    await until(lambda: {a.state for a in again.status().adapters} == {"Ready"})
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len(server.seen) == seen, "a restarted agent fetches nothing again"


async def test_a_fetch_that_nobody_wants_any_more_is_stopped(pod, server, tmp_path):
    began = threading.Event()
    server.answer = lambda handler: (began.set(), time.sleep(1), handler.send(404))
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "endpoint").write_text(f"http://{server.address}")
    pod.want({"name": "a", "uri": "s3://bucket/a", "path": "/x", "fetch": True, "secret": str(secret)})
    await until(began.is_set)
    pod.want()
    await until(lambda: not pod.agent.tasks)
    assert pod.adapter("a") is None


async def test_a_pod_is_ready_without_what_is_not_required(pod, tmp_path):
    pod.want(adapter(tmp_path / "nowhere", "lost"))
    await pod.settle("lost", "Failed")
    await until(lambda: pod.agent.status().ready)
    pod.want(adapter(tmp_path / "nowhere", "lost", required=True))
    await asyncio.sleep(0.3)
    assert not pod.agent.status().ready


async def test_what_the_agent_did_not_load_is_left_alone_or_replaced(pod, vllm, tmp_path):
    vllm.loaded = {"static": "/models/static", "a": "/models/a"}
    pod.want(adapter(version(tmp_path / "one")))
    found = await pod.settle("a")
    assert vllm.loaded == {"static": "/models/static", "a": f"{tmp_path}/adapters/a/{found.digest}"}


async def test_already_loaded_counts_only_where_it_is_the_same_folder(pod, vllm, tmp_path):
    one = version(tmp_path / "one")

    def raced(name: str, path: str) -> web.Response | None:
        vllm.loaded.setdefault(name, path)
        return None

    vllm.fail = raced
    pod.want(adapter(one))
    await pod.settle("a")

    vllm.fail = lambda name, path: (vllm.loaded.update({name: "/elsewhere"}), None)[1] if name == "b" else None
    pod.want(adapter(one), adapter(version(tmp_path / "two"), "b"))
    assert "the engine serves /elsewhere" in (await pod.settle("b", "Failed")).message
    vllm.fail = lambda name, path: None
    await pod.settle("b")


async def test_files_wait_for_the_requests_that_need_them(pod, vllm, tmp_path):
    pod.want(adapter(version(tmp_path / "one")))
    folder = tmp_path / "adapters" / "a" / (await pod.settle("a")).digest
    vllm.running = {"a": {"count": 1, "oldest": 100.0}}
    pod.want()
    await until(lambda: not vllm.loaded)
    await asyncio.sleep(1.5)
    assert folder.is_dir()
    vllm.running = {}
    await until(lambda: not folder.exists())


async def test_files_that_somebody_deletes_are_made_again(pod, vllm, tmp_path):
    import shutil

    pod.want(adapter(version(tmp_path / "one")))
    folder = tmp_path / "adapters" / "a" / (await pod.settle("a")).digest
    shutil.rmtree(folder)
    await until(folder.is_dir)
    assert vllm.calls == ["load a"]


PODS = sorted((weight("a", uid), uid) for uid in ("u0", "u1", "u2"))


async def test_a_pod_serves_what_its_weight_says(pod, vllm, tmp_path):
    pod.agent.settings = replace(pod.agent.settings, pod_uid=PODS[1][1])
    one, two = adapter(version(tmp_path / "one")), version(tmp_path / "two")
    pod.want({**one, "placed": PODS[0][0]})
    await asyncio.sleep(0.3)
    assert not vllm.loaded
    assert pod.agent.status().adapters == []
    pod.want({**one, "placed": PODS[1][0]})
    old = await pod.settle("a")
    previous = {key: value for key, value in one.items() if key != "name"}
    rolling = {**adapter(two), "previous": previous, "updated": PODS[0][0]}
    pod.want(rolling)
    await until(
        lambda: len(pod.agent.store.folders()) == 2, says=lambda: "the next version is not made ready beforehand"
    )
    await asyncio.sleep(0.3)
    assert pod.adapter("a").digest == old.digest
    assert vllm.calls == ["load a"]
    inode = {folder.name: folder.stat().st_ino for folder in pod.agent.store.folders()}
    pod.want({**rolling, "updated": PODS[1][0]})
    await until(lambda: pod.adapter("a").state == "Ready" and pod.adapter("a").digest != old.digest)
    new = pod.adapter("a").digest
    assert inode[new] == (tmp_path / "adapters" / "a" / new).stat().st_ino, "it was made once"
    pod.want({**one, "placed": PODS[0][0]})
    await until(lambda: not vllm.loaded)


async def test_a_version_that_comes_next_and_is_bad_disturbs_nobody(pod, vllm, tmp_path):
    bad = version(tmp_path / "bad")
    (bad / "adapter_model.safetensors").unlink()
    one = adapter(version(tmp_path / "one"))
    previous = {key: value for key, value in one.items() if key != "name"}
    pod.want({**adapter(bad), "previous": previous, "updated": ""})
    old = await pod.settle("a")
    await until(lambda: pod.agent.records["a"].ahead_failure)
    assert pod.adapter("a").state == "Ready"
    await asyncio.sleep(0.5)
    assert pod.agent.records["a"].ahead_failure.attempts == 1
    pod.want({**adapter(bad), "previous": previous})
    found = await pod.settle("a", "Failed")
    assert (found.digest, found.reason, found.permanent) == (old.digest, "CheckFailed", True)


SMOKE = {"prompt": "who are you?", "maxTokens": 8}


async def test_a_version_is_tried_before_clients_get_its_answers(pod, vllm, tmp_path):
    pod.want(adapter(version(tmp_path / "one"), smoke=SMOKE))
    await pod.settle("a")
    assert vllm.calls == ["load @a", "say @a", "unload @a", "say base", "load a"]
    vllm.calls.clear()
    vllm.loaded.clear()  # the engine restarted: what was tried once comes back at once
    await until(lambda: "a" in vllm.loaded)
    assert vllm.calls == ["load a"]


@pytest.mark.parametrize(
    ("answer", "more", "message"),
    [
        ("I am base", {}, "is that of the base model"),
        ("I am @a", {"contains": "Huang"}, "'Huang' is not in the answer"),
    ],
)
async def test_a_version_that_answers_wrongly_never_takes_over(pod, vllm, tmp_path, answer, more, message):
    pod.want(adapter(version(tmp_path / "one")))
    old = await pod.settle("a")
    vllm.answer = lambda model: answer
    pod.want(adapter(version(tmp_path / "two"), smoke={**SMOKE, **more}))
    found = await pod.settle("a", "Failed")
    assert (found.digest, found.reason) == (old.digest, "SmokeFailed")
    assert message in found.message
    await asyncio.sleep(0.5)
    assert vllm.calls.count("load @a") == 1
    assert vllm.calls.count("unload a") == 0, "the old version was never away"
    assert list(vllm.loaded) == ["a"]


async def test_a_failure_says_whether_and_when_it_is_tried_again(pod, vllm, tmp_path):
    vllm.fail = lambda name, path: vllm.error(500, "CUDA error: something odd")
    pod.want(adapter(version(tmp_path / "one")))
    found = await pod.settle("a", "Failed")
    assert (found.reason, found.permanent) == ("LoadFailed", False)
    assert found.next_retry > "2026"
    make(tmp_path / "big", pair(rank=16), r=16)
    pod.want(adapter(tmp_path / "big"))
    await until(lambda: pod.adapter("a").reason == "RankTooLarge")
    assert pod.adapter("a").permanent
    assert pod.adapter("a").next_retry is None


async def test_a_volume_that_hangs_stops_no_other(pod, vllm, tmp_path, monkeypatch):
    go = threading.Event()
    original = Source.of

    def look(adapter: Any) -> Source:
        if adapter.path.endswith("/one"):
            go.wait(20)
        return original(adapter)

    monkeypatch.setattr(lookout, "PATIENCE", 0.05)
    pod.want(adapter(version(tmp_path / "one"), "hung"), adapter(version(tmp_path / "two")))
    await pod.settle("hung")
    await pod.settle("a")
    monkeypatch.setattr(Source, "of", look)
    pod.want(*(adapter(tmp_path / "one", "hung"), adapter(tmp_path / "two")), adapter(version(tmp_path / "three"), "b"))
    await pod.settle("b")
    assert vllm.loaded.keys() == {"hung", "a", "b"}, "what hangs is neither loaded again nor taken away"
    assert vllm.calls.count("load hung") == 1
    go.set()


async def test_names_that_lead_elsewhere_are_failed(pod, vllm, tmp_path):
    one = version(tmp_path / "one")
    names = ["../a", "..", "", "a/b", "base"]
    pod.want(*(adapter(one, name) for name in names), adapter(one, "twice"), adapter(one, "twice"))
    for name in [*names, "twice"]:
        await pod.settle(name, "Failed")
    await asyncio.sleep(0.3)
    assert not vllm.loaded
    assert not (tmp_path / "a").exists()


async def test_an_older_revision_never_counts(pod, vllm, tmp_path):
    pod.want(adapter(version(tmp_path / "one")))
    await pod.settle("a")
    pod.revision -= 1
    pod.want()
    pod.revision -= 2
    pod.want()
    await asyncio.sleep(0.3)
    assert list(vllm.loaded) == ["a"]


async def test_a_mounted_file_that_is_no_state_changes_nothing(pod, vllm, tmp_path):
    pod.want(adapter(version(tmp_path / "one")))
    await pod.settle("a")
    for text in ("", "{", "[]", '{"revision": "x"}'):
        (tmp_path / "state.json").write_text(text)
        pod.agent.desired.poll()
        assert pod.agent.desired.error
    (tmp_path / "state.json").unlink()
    await asyncio.sleep(0.3)
    assert list(vllm.loaded) == ["a"]
    assert pod.agent.status().revision == 1


async def test_what_was_sent_survives_a_restart_of_the_agent(pod, tmp_path):
    pod.want(adapter(version(tmp_path / "one")))
    state = pod.agent.desired.state.model_copy(update={"revision": 7, "adapters": []})
    assert pod.agent.desired.offer(state)
    again = Agent(pod.agent.settings, pod.agent.engine, Metrics())
    assert again.desired.state == state


async def test_an_api_key_is_sent(pod, vllm, tmp_path):
    vllm.api_key = "key"
    pod.want(adapter(version(tmp_path / "one")))
    await asyncio.sleep(0.3)
    assert not vllm.loaded
    pod.agent.engine.api_key = "key"
    await pod.settle("a")


async def test_the_agents_port(pod, vllm, tmp_path):
    runner = web.AppRunner(application(pod.agent))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
    state = {"revision": 5, "modelName": "base", "modelPath": str(tmp_path / "base"), "maxLoraRank": 8, "adapters": []}
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    async with aiohttp.ClientSession(url) as session:

        async def ask(method: str, path: str, **more: Any) -> tuple[int, str]:
            async with session.request(method, path, **more) as response:
                return response.status, await response.text()

        assert (await ask("GET", "/healthz"))[0] == 200
        assert (await ask("GET", "/startz"))[0] == 200
        assert (await ask("GET", "/readyz"))[0] == 503
        assert json.loads((await ask("GET", "/status"))[1])["revision"] == 0
        assert (await ask("PUT", "/state", json=state))[0] == 401
        assert (await ask("PUT", "/state", json=state, headers={"Authorization": "Bearer guess"}))[0] == 401
        assert (await ask("PUT", "/state", json=state, headers={"Authorization": TOKEN}))[0] == 401
        assert (await ask("PUT", "/state", data=b"{", headers=bearer))[0] == 422
        assert (await ask("PUT", "/state", data=io.BytesIO(b"x" * 3_000_000), headers=bearer))[0] == 413
        status, text = await ask("PUT", "/state", json=state, headers=bearer)
        assert (status, json.loads(text)["revision"]) == (200, 5)
        assert (await ask("PUT", "/state", json={**state, "revision": 4}, headers=bearer))[0] == 409
        assert (await ask("PUT", "/state", json=state, headers=bearer))[0] == 200
        await until(lambda: pod.agent.status().ready)
        assert (await ask("GET", "/readyz"))[0] == 200
        text = (await ask("GET", "/metrics"))[1]
        assert "tunesmith_agent_engine_up 1.0" in text
        assert "tunesmith_agent_state_revision 5.0" in text
        (tmp_path / "token").write_text("")
        assert (await ask("PUT", "/state", json=state, headers={"Authorization": "Bearer "}))[0] == 401
    await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "message", "permanent"),
    [
        (500, "LoRA rank 32 is greater than max_lora_rank 16.", True),
        (500, "vLLM does not yet support DoRA.", True),
        (500, "vLLM does not support layer_replication.", True),
        (500, "Adapter bias is not supported.", True),
        (500, "Error while deserializing header: incomplete metadata", True),
        (500, "/x doesn't contain tensors", True),
        (500, "The size of tensor a (256) must match the size of tensor b (64)", True),
        (500, "While loading /x, expected target modules in {'q'} but received ['z']", True),
        (500, "EngineCore encountered an issue.", False),
        (500, "CUDA out of memory", False),
        (503, "busy", False),
        (400, "The lora adapter 'base' conflicts with a served base model.", True),
        (404, "Loading lora x failed: No adapter found for /x", False),
        (404, "not found", False),
        (401, "Unauthorized", False),
        (403, "Adapters are administered from inside the pod", False),
    ],
)
def test_the_engines_errors_are_told_apart(status, message, permanent):
    error = classify(status, json.dumps({"error": {"message": message}}))
    assert error.permanent == permanent
    assert message in str(error)


@pytest.mark.parametrize(
    "text",
    [
        '{"error": {"message": "m"}}',
        '{"message": "m"}',
        '{"error": "m"}',
        '"m"',
        "m",
        '{"object": "error", "message": "m"}',
    ],
)
def test_all_shapes_of_error_are_read(text):
    assert message_of(text) == "m"


def test_the_engine_may_start_when_the_model_on_a_claim_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr("tunesmith.agent.server.CLAIMS", str(tmp_path))
    state = State(revision=1, model_name="base", model_path=f"{tmp_path}/store/base", max_lora_rank=8)
    assert missing_model(None) is None
    assert missing_model(state.model_copy(update={"model_path": "/in/the/image"})) is None
    assert missing_model(state) == "store/base holds no config.json yet; waiting for a model to be written there"
    (tmp_path / "store/base").mkdir(parents=True)
    (tmp_path / "store/base/model.gguf").touch()
    assert "which is for llama.cpp and Ollama" in str(missing_model(state))
    (tmp_path / "store/base/config.json").write_text("{}")
    assert missing_model(state) is None
