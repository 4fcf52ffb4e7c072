"""`python -m tunesmith.agent`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from pathlib import Path

import aiohttp
from aiohttp import web

from tunesmith.agent import guard, plugin
from tunesmith.agent.engine import Engine
from tunesmith.agent.loop import Agent
from tunesmith.agent.metrics import Metrics
from tunesmith.agent.server import application, token
from tunesmith.agent.settings import Settings
from tunesmith.serving.contract import PLUGIN

# What a vLLM of any image imports: the guard by its name, the plugin by its entry point.
ENGINE_FILES = {
    "tunesmith_guard.py": Path(guard.__file__).read_bytes(),
    "tunesmith_plugin.py": Path(plugin.__file__).read_bytes(),
    "tunesmith_plugin-1.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tunesmith-plugin\nVersion: 1\n",
    "tunesmith_plugin-1.dist-info/entry_points.txt": (
        f"[vllm.general_plugins]\n{PLUGIN} = tunesmith_plugin:register\n".encode()
    ),
}


def install_guard(folder: Path) -> None:
    """Put guard and plugin where the engine finds them. It starts after this: the agent's startup probe waits."""
    for name, content in ENGINE_FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f"{path.name}.tmp")
        draft.write_bytes(content)
        os.replace(draft, path)


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
