"""The agent's own port: status and metrics for all, the desired state for who has the admin token."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from pathlib import Path

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError

from tunesmith.agent.loop import Agent
from tunesmith.serving.contract import State
from tunesmith.training.location import CLAIMS

AGENT: web.AppKey[Agent] = web.AppKey("agent", Agent)


class Start:
    """What the start of the engine waits for; None: nothing."""

    waiting: str | None = None


START: web.AppKey[Start] = web.AppKey("start", Start)


def token(path: Path) -> str:
    """The admin token. Read anew each time, as it may be rotated; empty where it is not there."""
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""


def from_operator(request: web.Request, path: Path) -> bool:
    """Whether a request carries the admin token of this file."""
    wanted = token(path).encode()
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    # A header may be any bytes.
    same = hmac.compare_digest(given.encode(errors="surrogateescape"), wanted)
    return bool(wanted) and scheme.lower() == "bearer" and same


def application(agent: Agent) -> web.Application:
    """The routes."""
    app = web.Application(client_max_size=2 * 1024 * 1024)
    app[AGENT] = agent
    app[START] = Start()
    app.router.add_get("/startz", startz)
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/status", status)
    app.router.add_get("/metrics", metrics)
    app.router.add_put("/state", put_state)
    return app


async def healthz(_: web.Request) -> web.Response:
    """The agent runs, and the guard is where the engine will look for it."""
    return web.Response(text="ok\n")


def missing_model(state: State | None) -> str | None:
    """What is to be written to a claim before the engine can start, for people. None: nothing."""
    if state is None or not state.model_path.startswith(CLAIMS) or Path(state.model_path, "config.json").exists():
        return None
    where = state.model_path.removeprefix(f"{CLAIMS}/")
    if next(Path(state.model_path).glob("*.gguf"), None):
        return f"{where} holds a GGUF file, which is for llama.cpp and Ollama: name a model in Hugging Face's layout"
    return f"{where} holds no config.json yet; waiting for a model to be written there"


async def startz(request: web.Request) -> web.Response:
    """200 when the engine may start: it would end at once where its model is not there yet."""
    state = request.app[AGENT].desired.state
    # In a thread: a volume may hang.
    waiting = request.app[START].waiting = await asyncio.to_thread(missing_model, state)
    return web.Response(text=f"{waiting or 'ok'}\n", status=503 if waiting else 200)


async def readyz(request: web.Request) -> web.Response:
    """200 while the pod serves what it must."""
    ready = request.app[AGENT].ready
    return web.Response(text="ready\n" if ready else "not ready\n", status=200 if ready else 503)


async def status(request: web.Request) -> web.Response:
    """AgentStatus. 304 where it is what the caller has: with a thousand adapters it is long, and asked for often."""
    found = request.app[AGENT].status().model_copy(update={"waiting": request.app[START].waiting})
    text = found.model_dump_json(by_alias=True, exclude_none=True)
    tag = f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
    if request.headers.get("If-None-Match") == tag:
        return web.Response(status=304, headers={"ETag": tag})
    return web.json_response(text=text, headers={"ETag": tag})


async def metrics(request: web.Request) -> web.Response:
    """Prometheus' text format."""
    body = generate_latest(request.app[AGENT].metrics.registry)
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def put_state(request: web.Request) -> web.Response:
    """Take a newer desired state. 409 where it is older than what the agent has."""
    agent = request.app[AGENT]
    if not from_operator(request, agent.settings.admin_token_file):
        return web.json_response({"error": "the admin token is needed"}, status=401)
    try:
        state = State.model_validate_json(await request.read())
    except ValidationError as error:
        return web.json_response({"error": str(error)}, status=422)
    if not agent.desired.offer(state):
        have = agent.desired.state.revision if agent.desired.state else 0
        return web.json_response({"error": f"revision {state.revision} is not newer than {have}"}, status=409)
    return await status(request)
