"""observe -> decide -> apply, the same for every kind."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from tunesmith import metrics
from tunesmith.api.kinds import JOBS, MODELS
from tunesmith.apply import Applier
from tunesmith.decide import job, modeldeployment
from tunesmith.decide.world import Decision, Event, World, held
from tunesmith.kube.client import ApiError
from tunesmith.observe import Observer
from tunesmith.settings import Settings

log = logging.getLogger(__name__)

# A child that the API server refuses is tried again this much later: a quota may have been raised.
REJECTED_SECONDS = 60.0


class Key(NamedTuple):
    """A custom resource."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


DECIDE: dict[str, Callable[[World, Settings], Decision | None]] = {
    **dict.fromkeys(JOBS, job.decide),
    "ModelDeployment": modeldeployment.decide,
}


class Reconciler:
    """Brings one resource after the other towards what its spec says."""

    def __init__(self, observer: Observer, applier: Applier, settings: Settings) -> None:
        self._observer, self._applier, self._settings = observer, applier, settings

    async def reconcile(self, key: Key) -> float | None:
        """One pass. Returns the seconds after which to look again; None: when something happens."""
        start = time.perf_counter()
        result = "error"
        try:
            again = await self._pass(key)
            result = "ok"
        finally:
            metrics.RECONCILES.labels(key.kind, result).inc()
            metrics.RECONCILE_SECONDS.labels(key.kind).observe(time.perf_counter() - start)
        return again

    async def _pass(self, key: Key) -> float | None:
        world = await self._observer.observe(*key)
        if world is None:
            return None
        decision = DECIDE[key.kind](world, self._settings)
        if decision is None:
            return None
        try:
            await self._applier.apply(world, decision)
        except ApiError as error:
            if error.status == 409:
                return 0  # the resource changed since it was read
            if not error.permanent:
                raise
            log.warning("%s: %s", key, error)
            status = held(world, MODELS[key.kind].model_validate(world.resource).status, "Rejected", error.message)
            event = Event("Warning", "Rejected", error.message)
            await self._applier.apply(world, Decision(status=status, events=(event,)))
            return REJECTED_SECONDS
        old = type(decision.status).model_validate(world.resource.get("status") or {})
        metrics.follow(key.kind, key.namespace, old, decision.status)
        return decision.again if decision.again is not None else self._settings.resync_seconds
