"""The gateway's own port: probes, metrics and status for all, the routes for who has the admin token."""

from __future__ import annotations

import time
from pathlib import Path

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from pydantic import ValidationError

from tunesmith.agent.server import from_operator
from tunesmith.gateway.proxy import Proxy
from tunesmith.serving.routes import GatewayStatus, Routes


class Control:
    """The handlers."""

    def __init__(self, proxy: Proxy, admin_token_file: Path, pod_uid: str) -> None:
        self.proxy, self.admin_token_file, self.pod_uid = proxy, admin_token_file, pod_uid

    def application(self) -> web.Application:
        """The routes."""
        app = web.Application(client_max_size=2 * 1024 * 1024)
        app.router.add_get("/healthz", self.healthz)
        app.router.add_get("/readyz", self.readyz)
        app.router.add_get("/status", self.status)
        app.router.add_get("/metrics", self.metrics)
        app.router.add_put("/routes", self.put_routes)
        return app

    async def healthz(self, _: web.Request) -> web.Response:
        """The gateway runs."""
        return web.Response(text="ok\n")

    async def readyz(self, _: web.Request) -> web.Response:
        """200 as soon as it knows its routes."""
        known = self.proxy.table.routes is not None
        return web.Response(text="ready\n" if known else "no routes yet\n", status=200 if known else 503)

    async def status(self, _: web.Request) -> web.Response:
        """GatewayStatus."""
        proxy = self.proxy
        found = GatewayStatus(
            revision=proxy.table.routes.revision if proxy.table.routes else 0,
            pod_uid=self.pod_uid,
            held=proxy.held,
            in_flight=proxy.in_flight,
            idle_seconds=0.0 if proxy.in_flight else round(time.monotonic() - proxy.last, 1),
            trials=proxy.table.trials,
        )
        return web.json_response(text=found.model_dump_json(by_alias=True))

    async def metrics(self, _: web.Request) -> web.Response:
        """Prometheus' text format."""
        metrics = self.proxy.metrics
        metrics.pods.set(sum(pod.up for pod in self.proxy.pods.known.values()))
        return web.Response(body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def put_routes(self, request: web.Request) -> web.Response:
        """Take newer routes. 409 where they are older than those that the gateway has."""
        if not from_operator(request, self.admin_token_file):
            return web.json_response({"error": "the admin token is needed"}, status=401)
        try:
            routes = Routes.model_validate_json(await request.read())
        except ValidationError as error:
            return web.json_response({"error": str(error)}, status=422)
        if not self.proxy.table.offer(routes):
            return web.json_response({"error": f"revision {routes.revision} is older than what is there"}, status=409)
        return await self.status(request)
