"""The operator's own HTTP: probes and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from tunesmith import metrics
from tunesmith.reconcile import Key
from tunesmith.settings import Settings
from tunesmith.workqueue import WorkQueue

# A key that waits this long for a worker means that the workers hang.
STUCK_SECONDS = 300.0


@asynccontextmanager
async def serve(settings: Settings, queue: WorkQueue[Key]) -> AsyncIterator[None]:
    """Serve /healthz and /readyz on the health port and /metrics on its own."""

    async def healthz(_: web.Request) -> web.Response:
        # A standby replica is healthy. An API server that is away is no reason to restart.
        if queue.oldest_seconds > STUCK_SECONDS:
            return web.Response(status=500, text=f"the queue is stuck: {queue.oldest_seconds:.0f} s\n")
        return web.Response(text="ok\n")

    async def metrics_page(_: web.Request) -> web.Response:
        metrics.QUEUE_DEPTH.set(queue.depth)
        metrics.QUEUE_OLDEST.set(queue.oldest_seconds)
        page = await asyncio.to_thread(generate_latest)
        return web.Response(body=page, headers={"Content-Type": CONTENT_TYPE_LATEST})

    health, page = web.Application(), web.Application()
    health.add_routes([web.get("/healthz", healthz), web.get("/readyz", healthz)])
    page.add_routes([web.get("/metrics", metrics_page)])
    runners = [(web.AppRunner(health, access_log=None), settings.health_port)]
    runners.append((web.AppRunner(page, access_log=None), settings.metrics_port))
    for runner, port in runners:
        await runner.setup()
        await web.TCPSite(runner, port=port).start()
    try:
        yield
    finally:
        for runner, _ in runners:
            await runner.cleanup()
