"""Leader election by a Lease, as client-go does it: one of several replicas works, the others wait.

The library's own election does not notice a dead leading task and does not give the Lease back, so a small loop
serves here. https://kubernetes.io/docs/concepts/architecture/leases/
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime

import aiohttp

from tunesmith.kube.client import ApiError, Client, Object

NAME = "tunesmith-operator"
DURATION_SECONDS = 10
RENEW_SECONDS = 3.0
RETRY_SECONDS = 1.0
REQUEST_SECONDS = 3.0

log = logging.getLogger(__name__)


class LeaseLost(Exception):
    """Another replica leads now, or the Lease could not be renewed in time. The process must end."""


class Lease:
    """This replica's hold on the Lease.

    Nobody's clock is trusted but one's own: a candidate takes over when it has seen no change of the Lease for its
    whole duration, and a leader counts its own time from before it sent the renewal. So the old leader's time is over
    before the new one's begins, also when the old one was stopped (SIGSTOP) or cut off in between.
    """

    def __init__(self, client: Client, namespace: str, holder: str) -> None:
        self._client, self._namespace, self._holder = client, namespace, holder
        self._renewed = float("-inf")
        self._seen: tuple[object, float] = (None, 0.0)

    def require(self) -> None:
        """Raise LeaseLost if this replica does not lead any more. Asked before every write."""
        if time.monotonic() - self._renewed > DURATION_SECONDS:
            raise LeaseLost("the Lease was not renewed in time")

    async def acquire(self) -> None:
        """Wait until this replica leads."""
        said = False
        while not await self._attempt():
            if not said:
                log.info("another replica leads; waiting")
                said = True
            await asyncio.sleep(RETRY_SECONDS)
        log.info("leading as %s", self._holder)

    async def keep(self) -> None:
        """Renew for ever. Raises LeaseLost."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            if not await self._attempt():
                self.require()

    async def release(self) -> None:
        """Let another replica lead at once."""
        async with asyncio.timeout(REQUEST_SECONDS):
            lease = await self._client.get("Lease", self._namespace, NAME)
            if lease and lease["spec"].get("holderIdentity") == self._holder:
                lease["spec"]["holderIdentity"] = ""
                await self._client.replace(lease)

    async def _attempt(self) -> bool:
        """Take or renew the Lease. False: another has it, or the API server cannot be reached."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                taken = await self._take()
        except (ApiError, aiohttp.ClientError, OSError, ValueError) as error:  # TimeoutError is an OSError
            log.warning("the Lease cannot be renewed: %s", str(error) or type(error).__name__)
            return False
        if taken:
            self._renewed = began
        elif self._renewed > float("-inf"):
            raise LeaseLost("another replica took the Lease")
        return taken

    async def _take(self) -> bool:
        lease = await self._client.get("Lease", self._namespace, NAME)
        if lease is None:
            return await self._client.create(self._body())
        holder = lease["spec"].get("holderIdentity")
        if holder and holder != self._holder and not self._expired(lease):
            return False
        lease["spec"] = {**lease["spec"], **self._body()["spec"]}
        await self._client.replace(lease)
        return True

    def _expired(self, lease: Object) -> bool:
        version, now = lease["metadata"]["resourceVersion"], time.monotonic()
        if version != self._seen[0]:
            self._seen = (version, now)
        return bool(now - self._seen[1] > lease["spec"]["leaseDurationSeconds"])

    def _body(self) -> Object:
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"namespace": self._namespace, "name": NAME},
            "spec": {
                "holderIdentity": self._holder,
                "leaseDurationSeconds": DURATION_SECONDS,
                "acquireTime": stamp,
                "renewTime": stamp,
            },
        }
