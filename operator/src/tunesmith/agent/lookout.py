"""Looks at sources without ever waiting long for one: a network volume that hangs must not stop the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from math import inf

from tunesmith.agent.store import Source
from tunesmith.serving.contract import Version

PATIENCE = 2.0
THREADS = 8


class Lookout:
    """Remembers what each source looked like last."""

    def __init__(self, fresh: float) -> None:
        self.fresh = fresh
        """Seconds for which a look holds: one adapter that is ready is no reason to look at all others' files."""
        # Threads of its own: those that hang are not missing elsewhere.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="lookout")
        self._looking: dict[Version, asyncio.Future[Source]] = {}
        self._known: dict[Version, tuple[float, Source]] = {}
        """When each was looked at, and what was seen."""

    async def sources(self, versions: Iterable[Version]) -> dict[Version, Source]:
        """The source of each version: as it is, or as it was where it does not answer."""
        wanted = dict.fromkeys(versions)
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        for version in wanted:
            looked, _ = self._known.get(version, (-inf, None))
            if version not in self._looking and now - looked >= self.fresh:
                self._looking[version] = loop.run_in_executor(self._threads, Source.of, version)
        if self._looking:
            await asyncio.wait(self._looking.values(), timeout=PATIENCE)
        for version, look in list(self._looking.items()):
            if look.done():
                del self._looking[version]
                self._known[version] = now, look.result()
        self._known = {v: seen for v, seen in self._known.items() if v in wanted}
        unseen = {v: Source(v.uri, v.path, v.fetch, v.secret, "") for v in wanted if v not in self._known}
        return {**unseen, **{v: source for v, (_, source) in self._known.items()}}
