"""The pods of the benchmark: `python pods.py`, with one JSON line on stdin for each pod to run.

A pod is the real agent and the real guard before the small engine of tests/fleet, on a loopback address of its own.
What its engine loads and unloads is written to stdout, with the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from tunesmith.agent.engine import Engine
from tunesmith.agent.guard import Guard
from tunesmith.agent.loop import Agent
from tunesmith.agent.metrics import Metrics
from tunesmith.agent.server import application, token
from tunesmith.agent.settings import Settings
from vllm.entrypoints.openai.api_server import Engine as SmallEngine
from vllm.entrypoints.openai.api_server import Refused, bridged

ENGINE_PORT, AGENT_PORT = 8000, 9500
DOWN_SECONDS = 3
"""vLLM needs longer to start."""


def say(**event: Any) -> None:
    """Tell the benchmark."""
    sys.stdout.write(json.dumps({**event, "at": time.time()}) + "\n")
    sys.stdout.flush()


class WatchedEngine(SmallEngine):
    """The small engine, which tells what it loads."""

    def __init__(self, uid: str, model: str) -> None:
        super().__init__(model, "base", 64)
        self.uid = uid
        self.up = True

    def load(self, asked: dict[str, Any]) -> str:
        result = str(super().load(asked))
        say(uid=self.uid, loaded=asked["lora_name"], digest=asked["lora_path"].rsplit("/", 1)[1])
        return result

    async def route(self, path: str, body: bytes, send: Any) -> None:
        if not self.up:
            raise Refused(503, "ServiceUnavailable", "starting")
        await super().route(path, body, send)
        if path == "/v1/unload_lora_adapter":
            say(uid=self.uid, unloaded=json.loads(body)["lora_name"])

    async def restart(self) -> None:
        """Down for a while, then up and empty."""
        self.up = False
        self.adapters.clear()
        await asyncio.sleep(DOWN_SECONDS)
        self.up = True
        say(uid=self.uid, restarted=True)


async def serve(app: web.Application, host: str, port: int) -> None:
    """Listen until the process ends."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()


async def run_pod(session: aiohttp.ClientSession, order: dict[str, Any]) -> WatchedEngine:
    """Start a pod. Its agent runs on by itself."""
    engine = WatchedEngine(order["uid"], order["model"])
    await serve(bridged(Guard(engine)), order["ip"], ENGINE_PORT)
    folder = Path(order["folder"])
    settings = Settings(
        state_file=Path(order["state"]),
        admin_token_file=Path(order["token"]),
        adapters_folder=folder / "adapters",
        engine_url=f"http://{order['ip']}:{ENGINE_PORT}",
        agent_host=order["ip"],
        pod_uid=order["uid"],
        max_lora_rank=64,
        max_loras=8,
        grace_seconds=2.0,
        resync_seconds=order["resync"],
    )
    agent = Agent(settings, Engine(session, settings.engine_url, lambda: token(settings.admin_token_file)), Metrics())
    await serve(application(agent), order["ip"], AGENT_PORT)
    asyncio.get_running_loop().create_task(agent.run()).add_done_callback(lambda _: os._exit(1))
    return engine


async def orders() -> Any:
    """The lines of stdin."""
    reader = asyncio.StreamReader(limit=2**20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield json.loads(line)


@contextlib.contextmanager
def without_logs() -> Iterator[None]:
    """Thousands of lines would be written otherwise."""
    import logging

    logging.disable(logging.INFO)
    yield


async def main() -> None:
    """Run pods until stdin ends."""
    engines: dict[str, WatchedEngine] = {}
    connector = aiohttp.TCPConnector(limit=0)
    with without_logs():
        async with aiohttp.ClientSession(connector=connector) as session:
            async for order in orders():
                if order.get("restart"):
                    await engines[order["uid"]].restart()
                else:
                    engines[order["uid"]] = await run_pod(session, order)
                    say(uid=order["uid"], started=True)


if __name__ == "__main__":
    asyncio.run(main())
