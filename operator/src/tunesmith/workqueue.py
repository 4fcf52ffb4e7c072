"""A queue of keys to look at: each key once, one worker per key at a time, later tries further apart.

The same promises as client-go's rate-limiting workqueue.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

Key = TypeVar("Key", bound=Hashable)

FIRST_RETRY_SECONDS = 0.5
LAST_RETRY_SECONDS = 300.0


class WorkQueue(Generic[Key]):
    """Keys that are due, now or later."""

    def __init__(self) -> None:
        self._due: dict[Key, float] = {}
        self._active: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._changed = asyncio.Event()

    def add(self, key: Key, delay: float = 0) -> None:
        """Have `key` looked at after `delay` seconds, or sooner if it was due sooner."""
        when = self._now() + delay
        if when < self._due.get(key, float("inf")):
            self._due[key] = when
            self._changed.set()

    def forget(self, key: Key) -> None:
        """Drop a key whose object is gone."""
        self._due.pop(key, None)
        self._failures.pop(key, None)

    @property
    def depth(self) -> int:
        """Keys that are due now and wait for a worker."""
        now = self._now()
        return sum(when <= now and key not in self._active for key, when in self._due.items())

    @property
    def oldest_seconds(self) -> float:
        """How long the key that waits longest has been due."""
        now = self._now()
        return max(
            (now - when for key, when in self._due.items() if when <= now and key not in self._active),
            default=0,
        )

    async def run(self, handle: Callable[[Key], Awaitable[float | None]], workers: int) -> None:
        """Work for ever. `handle` returns the seconds after which to look again, or None. A failure is logged and
        tried again, further apart each time.
        """
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._work(handle))

    async def _work(self, handle: Callable[[Key], Awaitable[float | None]]) -> None:
        while True:
            key = await self._next()
            try:
                again = await handle(key)
            except Exception as error:
                count = self._failures[key] = self._failures.get(key, 0) + 1
                delay = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(count, 16)) * random.uniform(0.8, 1.2)
                log.warning(
                    "%s: %s: %s; again in %.0f s",
                    key,
                    type(error).__name__,
                    error,
                    delay,
                    exc_info=count == 1,
                )
                self.add(key, delay)
            else:
                self._failures.pop(key, None)
                if again is not None:
                    self.add(key, again)
            finally:
                self._active.discard(key)
                self._changed.set()

    async def _next(self) -> Key:
        while True:
            free = {key: when for key, when in self._due.items() if key not in self._active}
            key = min(free, key=free.__getitem__, default=None)
            now = self._now()
            if key is not None and free[key] <= now:
                del self._due[key]
                self._active.add(key)
                return key
            self._changed.clear()
            try:
                async with asyncio.timeout(None if key is None else free[key] - now):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
