"""`python -m tunesmith.gateway`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import signal
import sys

import aiohttp
from aiohttp import web
from pydantic import ValidationError

from tunesmith.agent.guard import Keys
from tunesmith.gateway.control import Control
from tunesmith.gateway.metrics import Metrics
from tunesmith.gateway.pods import Pods, by_name
from tunesmith.gateway.proxy import Proxy, session
from tunesmith.gateway.settings import PREFIX, Settings
from tunesmith.gateway.table import Table

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0


async def poll(table: Table) -> None:
    """Look at the mounted routes for ever."""
    said = None
    while True:
        error = table.poll()  # in no thread of its own: requests count in the table, and the operator offers it routes
        if error and error != said:
            log.warning("%s", error)
        said = error
        await asyncio.sleep(POLL_SECONDS)


async def run(settings: Settings) -> None:
    """Serve until a signal comes, then until the requests that have begun are over."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    rng = random.Random()
    async with aiohttp.ClientSession() as asking, session() as http:
        pods = Pods(asking, by_name(settings.engines), settings.agent_port, rng)
        table = Table(settings.routes_file, rng)
        proxy = Proxy(http, pods, table, Metrics(), Keys(settings.api_keys_folder), settings.engine_port)
        control = Control(proxy, settings.admin_token_file, settings.pod_uid)
        tasks = [asyncio.create_task(part) for part in (poll(table), pods.watch())]
        # A client that goes away takes its request with it: the engine stops working for it.
        clients = web.AppRunner(
            proxy.application(), access_log=None, handler_cancellation=True, shutdown_timeout=settings.shutdown_seconds
        )
        own = web.AppRunner(control.application(), access_log=None, shutdown_timeout=1)
        for runner, port in ((clients, settings.port), (own, settings.control_port)):
            await runner.setup()
            await web.TCPSite(runner, settings.host, port).start()
        ended = asyncio.create_task(stop.wait())
        await asyncio.wait([ended, *tasks], return_when=asyncio.FIRST_COMPLETED)
        await clients.cleanup()  # takes no more, and waits for what has begun
        for task in (*tasks, ended):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await own.cleanup()


def main() -> int:
    """Exit codes: 0 after SIGTERM; 2 for bad settings."""
    logging.basicConfig(level=os.environ.get("TUNESMITH_LOG_LEVEL", "INFO"), format="%(levelname)s %(message)s")
    try:
        settings = Settings.from_environment()
    except ValidationError as error:
        for item in error.errors():
            print(f"{PREFIX}{str(item['loc'][0]).upper()}: {item['msg']}", file=sys.stderr)
        return 2
    asyncio.run(run(settings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
