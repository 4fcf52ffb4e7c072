"""The only writer: children, then agents, then the status, then events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import aiohttp

from tunesmith.addresses import host_port
from tunesmith.children.meta import Object
from tunesmith.decide.world import Decision, World
from tunesmith.kube import events
from tunesmith.kube.client import CHILDREN_MANAGER, ApiError, Client
from tunesmith.kube.compare import covers, drops
from tunesmith.serving.contract import AGENT_PORT, State
from tunesmith.serving.routes import Routes

log = logging.getLogger(__name__)

PUSH_SECONDS = 5.0


class Applier:
    """Carries out decisions. Everything it does may be done twice, and may be cut short at any point."""

    def __init__(
        self, client: Client, http: aiohttp.ClientSession, admin_tokens: Callable[[str, str], Awaitable[list[str]]]
    ) -> None:
        self._client, self._http, self._admin_tokens = client, http, admin_tokens

    async def apply(self, world: World, decision: Decision) -> None:
        """Write what differs from what was observed. An idle pass writes nothing."""
        meta = world.resource["metadata"]
        for body in decision.create:
            if _ref(body) not in world.children:
                await self._client.create(body)
        for body in decision.apply:
            live = world.children.get(_ref(body))
            if live is None or not covers(live, body) or drops(live, body, CHILDREN_MANAGER):
                await self._client.apply(body)
        for live in decision.delete:
            await self._client.delete(live)
        for live in decision.kill:
            await self._client.bury(live, "NodeLost", f"node {live['spec'].get('nodeName')} does not answer")
        if decision.push:
            await self._push(world, decision)
        status = decision.status.body()
        if status != world.resource.get("status"):
            await self._client.apply_status(world.resource, status)
            for event in decision.events:
                try:
                    await events.post(self._client, world.resource, event.type, event.reason, event.message)
                except ApiError as error:  # an event is a courtesy
                    log.warning("event %s of %s: %s", event.reason, meta["name"], error)

    async def _push(self, world: World, decision: Decision) -> None:
        """Tell agents and gateways at once. One that does not hear it reads it from its ConfigMap a minute later."""
        meta = world.resource["metadata"]
        tokens = await self._admin_tokens(meta["namespace"], meta["name"])
        await asyncio.gather(*(self._tell(address, news, tokens) for address, news in decision.push))

    async def _tell(self, address: str, news: State | Routes, tokens: list[str]) -> None:
        """Send it with the newest token that the pod has learnt of."""
        path = "state" if isinstance(news, State) else "routes"
        url, body, limit = (
            f"http://{host_port(address, AGENT_PORT)}/{path}",
            news.body(),
            aiohttp.ClientTimeout(PUSH_SECONDS),
        )
        try:
            for token in tokens:
                headers = {"Authorization": f"Bearer {token}"}
                async with self._http.put(
                    url, json=body, headers=headers, timeout=limit, allow_redirects=False
                ) as response:
                    if response.status == 401:
                        continue
                    if response.status >= 300:
                        log.warning("pod %s refused its %s: HTTP %d", address, path, response.status)
                    return
            log.warning("pod %s knows none of the admin tokens", address)
        except (aiohttp.ClientError, TimeoutError) as error:
            log.info("pod %s was not told: %s", address, error)


def _ref(body: Object) -> tuple[str, str]:
    return body["kind"], body["metadata"]["name"]
