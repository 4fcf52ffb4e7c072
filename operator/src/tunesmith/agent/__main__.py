"""`python -m tunesmith.agent`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
from pathlib import Path

import aiohttp
from aiohttp import web

from tunesmith.agent import guard
from tunesmith.agent.engine import Engine
from tunesmith.agent.loop import Agent
from tunesmith.agent.metrics import Metrics
from tunesmith.agent.server import application, token
from tunesmith.agent.settings import Settings

MODULE = "tunesmith_guard.py"


def install_guard(folder: Path) -> None:
    """Put the guard where the engine finds it. The engine starts after this: the agent's startup probe waits."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f"{MODULE}.tmp"
    shutil.copyfile(guard.__file__, draft)
    os.replace(draft, folder / MODULE)


async def run(settings: Settings) -> None:
    """Serve until a signal comes, then end the process."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with aiohttp.ClientSession() as session:
        engine = Engine(session, settings.engine_url, lambda: token(settings.admin_token_file), settings.engine_api_key)
        agent = Agent(settings, engine, Metrics())
        runner = web.AppRunner(application(agent), access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.TCPSite(runner, settings.agent_host, settings.agent_port).start()
        loop = asyncio.create_task(agent.run())
        await stop.wait()
        loop.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loop
        await runner.cleanup()
    # A copy that still runs in a thread is of no use to anybody: do not wait for it.
    logging.shutdown()
    os._exit(0)


def main() -> None:
    """Entry point."""
    logging.basicConfig(level=os.environ.get("TUNESMITH_LOG_LEVEL", "INFO"), format="%(levelname)s %(message)s")
    settings = Settings.from_environment()
    install_guard(settings.guard_folder)
    asyncio.run(run(settings))


if __name__ == "__main__":
    main()
