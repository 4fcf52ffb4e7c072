"""Leader election by a Lease, as client-go does it: one of several replicas works, the others wait.

The library's own election does not notice a dead leading task and does not give the Lease back, so a small loop
serves here. https://kubernetes.io/docs/concepts/architecture/leases/
"""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta

from tunesmith.kube.client import ApiError, Client, Object

NAME = "tunesmith-operator"
DURATION_SECONDS = 15
RENEW_SECONDS = 5.0
RETRY_SECONDS = 2.0

log = logging.getLogger(__name__)


class LeaseLost(Exception):
    """Another replica leads now, or the Lease could not be renewed in time. The process must end."""


class Lease:
    """This replica's hold on the Lease."""

    def __init__(self, client: Client, namespace: str, holder: str) -> None:
        self._client, self._namespace, self._holder = client, namespace, holder

    async def acquire(self) -> None:
        """Wait until this replica leads."""
        said = False
        while not await self._try():
            if not said:
                log.info("another replica leads; waiting")
                said = True
            await asyncio.sleep(RETRY_SECONDS)
        log.info("leading as %s", self._holder)

    async def keep(self) -> None:
        """Renew for ever. Raises LeaseLost."""
        renewed = asyncio.get_running_loop().time()
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                if not await self._try():
                    raise LeaseLost("another replica took the Lease")
                renewed = asyncio.get_running_loop().time()
            except (ApiError, OSError, TimeoutError) as error:
                if asyncio.get_running_loop().time() - renewed > DURATION_SECONDS - RENEW_SECONDS:
                    raise LeaseLost(f"the Lease could not be renewed: {error}") from error

    async def release(self) -> None:
        """Let another replica lead at once."""
        lease = await self._client.get("Lease", self._namespace, NAME)
        if lease and lease["spec"].get("holderIdentity") == self._holder:
            lease["spec"]["holderIdentity"] = ""
            await self._client.replace(lease)

    async def _try(self) -> bool:
        now = datetime.now(UTC)
        lease = await self._client.get("Lease", self._namespace, NAME)
        if lease is None:
            return await self._client.create(self._body(now))
        spec = lease["spec"]
        holder = spec.get("holderIdentity")
        if holder and holder != self._holder:
            renewed = datetime.fromisoformat(spec["renewTime"])
            if now < renewed + timedelta(seconds=spec["leaseDurationSeconds"]):
                return False
        lease["spec"] = {**spec, **self._body(now)["spec"]}
        try:
            await self._client.replace(lease)
        except ApiError as error:
            if error.status == 409:
                return False
            raise
        return True

    def _body(self, now: datetime) -> Object:
        stamp = now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
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
