"""The engines' pods: found by DNS, and what each serves as its agent says it."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field

import aiohttp
from pydantic import ValidationError

from tunesmith.addresses import host_port
from tunesmith.serving.contract import AgentStatus

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
ASK_SECONDS = 2.0
# A pod that could not be reached is left alone for so long.
AVOID_SECONDS = 1.0

Find = Callable[[], Awaitable[list[str]]]


@dataclass(eq=False)
class Pod:
    """One pod, and what it serves."""

    address: str
    uid: str = ""
    up: bool = False
    """Whether its engine answers."""
    serves: frozenset[str] = frozenset()
    """Adapters, in whatever version."""
    loads: frozenset[str] = frozenset()
    """Adapters that are on their way into it."""
    in_flight: int = 0
    avoided_until: float = 0.0

    def see(self, status: AgentStatus) -> None:
        """Take over what its agent says."""
        self.uid, self.up = status.pod_uid, status.engine == "Ready"
        self.serves = frozenset(one.name for one in status.adapters if one.digest)
        self.loads = frozenset(one.name for one in status.adapters if one.state == "Loading" and not one.digest)

    def avoid(self) -> None:
        """It could not be reached."""
        self.avoided_until = time.monotonic() + AVOID_SECONDS


@dataclass
class Pods:
    """All pods that are Ready, as Kubernetes says it, and one look at their agents each second."""

    http: aiohttp.ClientSession
    find: Find
    agent_port: int
    rng: random.Random = field(default_factory=random.Random)
    known: dict[str, Pod] = field(default_factory=dict)
    _turn: asyncio.Event = field(default_factory=asyncio.Event)

    async def watch(self) -> None:
        """Look for ever."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Find the pods, and ask their agents. One that does not answer goes on with what it said before, as long as
        Kubernetes calls it Ready: an agent that restarts takes no engine out of service.
        """
        try:
            found = await self.find()
        except OSError as error:
            log.warning("the engines' addresses cannot be looked up: %s", error)
            found = list(self.known)
        self.known = {address: self.known.get(address) or Pod(address) for address in found}
        await asyncio.gather(*(self._ask(pod) for pod in self.known.values()))
        turn, self._turn = self._turn, asyncio.Event()
        turn.set()

    async def turn(self, seconds: float) -> None:
        """Wait for the next look, but no longer."""
        try:
            await asyncio.wait_for(self._turn.wait(), seconds)
        except TimeoutError:
            return

    def of(self, model: str, wanted: Collection[str]) -> Pod | None:
        """The pod for a request: of those that serve the model, one with the fewest requests in flight. None: wait.

        `wanted`: names of adapters. For any other model, and for an adapter that no pod serves or loads, every pod is
        as good: its engine knows what to answer. Where the only pods that do cannot be reached for now, the others
        would say that there is no such model.
        """
        now = time.monotonic()
        up = [pod for pod in self.known.values() if pod.up and pod.avoided_until <= now]
        if model in wanted:
            serving = [pod for pod in up if model in pod.serves]
            if not serving and any(model in pod.serves | pod.loads for pod in self.known.values()):
                return None
            up = serving or up
        least = min((pod.in_flight for pod in up), default=0)
        free = [pod for pod in up if pod.in_flight == least]
        return self.rng.choice(free) if free else None

    def serving(self, model: str) -> bool:
        """Whether any pod serves an adapter."""
        return any(pod.up and model in pod.serves for pod in self.known.values())

    async def _ask(self, pod: Pod) -> None:
        url, limit = f"http://{host_port(pod.address, self.agent_port)}/status", aiohttp.ClientTimeout(ASK_SECONDS)
        try:
            async with self.http.get(url, timeout=limit) as response:
                if response.status == 200:
                    pod.see(AgentStatus.model_validate_json(await response.read()))
        except (aiohttp.ClientError, TimeoutError, ValidationError) as error:
            log.info("agent %s: %r", pod.address, error)


def by_name(name: str) -> Find:
    """Finds the addresses that a headless Service's name has. None while no pod of it is Ready."""

    async def find() -> list[str]:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
                return []
            raise
        return sorted({str(address[0]) for *_, address in found})

    return find
