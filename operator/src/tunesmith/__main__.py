"""The operator: `python -m tunesmith`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys

import aiohttp
from pydantic import ValidationError

from tunesmith import health, metrics
from tunesmith.apply import Applier
from tunesmith.handlers import watch
from tunesmith.kube.client import Client
from tunesmith.kube.lease import Lease, LeaseLost
from tunesmith.observe import Observer
from tunesmith.reconcile import Key, Reconciler
from tunesmith.settings import PREFIX, Settings, load
from tunesmith.workqueue import WorkQueue

log = logging.getLogger("tunesmith")


async def run(settings: Settings) -> None:
    """Wait for the Lease, then watch and reconcile until SIGTERM."""
    queue: WorkQueue[Key] = WorkQueue()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with Client() as client, aiohttp.ClientSession() as http, health.serve(settings, queue):
        lease = Lease(client, settings.namespace, settings.pod_name)
        if not await _first(lease.acquire(), stop.wait()):
            return
        metrics.LEADER.set(1)
        client.require = lease.require
        observer = Observer(client, http, settings)
        reconciler = Reconciler(observer, Applier(client, http, observer.admin_tokens), settings)
        try:
            await _first(
                stop.wait(),
                lease.keep(),
                queue.run(reconciler.reconcile, settings.workers),
                watch.run(queue, settings),
            )
        finally:
            with contextlib.suppress(Exception):
                await lease.release()


async def _first(*parts: object) -> bool:
    """Run until the first part ends, cancel the others, raise its error. Whether it was the first part given."""
    tasks = [asyncio.ensure_future(part) for part in parts]  # type: ignore[call-overload]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    for task in done:
        task.result()
    return tasks[0] in done


def main() -> int:
    """Exit codes: 0 after SIGTERM; 1 when the Lease was lost or anything broke; 2 for bad settings."""
    try:
        settings = load(os.environ)
    except ValidationError as error:
        for item in error.errors():
            print(
                f"{PREFIX}{str(item['loc'][0]).upper()}: {item['msg']}, found {item['input']!r}",
                file=sys.stderr,
            )
        return 2
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("kopf").setLevel(logging.WARNING)
    try:
        asyncio.run(run(settings))
    except LeaseLost as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
