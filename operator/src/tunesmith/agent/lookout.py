"""Looks at sources without ever waiting long for one: a network volume that hangs must not stop the others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from tunesmith.agent.store import Source
from tunesmith.serving.contract import DesiredAdapter

PATIENCE = 2.0
THREADS = 8


class Lookout:
    """Remembers what each source looked like last."""

    def __init__(self) -> None:
        # Threads of its own: those that hang are not missing elsewhere.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="lookout")
        self._looking: dict[DesiredAdapter, asyncio.Future[Source]] = {}
        self._known: dict[DesiredAdapter, Source] = {}

    async def sources(self, adapters: Iterable[DesiredAdapter]) -> dict[str, Source]:
        """The source of each adapter by name: as it is, or as it was where it does not answer."""
        wanted = list(adapters)
        loop = asyncio.get_running_loop()
        for adapter in wanted:
            if adapter not in self._looking:
                self._looking[adapter] = loop.run_in_executor(self._threads, Source.of, adapter)
        if self._looking:
            await asyncio.wait(self._looking.values(), timeout=PATIENCE)
        for adapter, look in list(self._looking.items()):
            if look.done():
                del self._looking[adapter]
                self._known[adapter] = look.result()
        self._known = {a: s for a, s in self._known.items() if a in wanted}
        unseen = {a: Source(a.uri, a.path, a.fetch, a.secret, "") for a in wanted if a not in self._known}
        return {a.name: s for a, s in {**unseen, **self._known}.items()}
