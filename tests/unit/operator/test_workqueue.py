"""The queue's promises."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import Callable

import pytest
from tunesmith import workqueue
from tunesmith.workqueue import WorkQueue


async def drain(queue: WorkQueue[str], handle: object, until: Callable[[], bool], workers: int = 4) -> None:
    """Work until something holds, and a moment longer, in which nothing more should happen."""
    work = asyncio.ensure_future(queue.run(handle, workers))  # type: ignore[arg-type]
    async with asyncio.timeout(30):
        while not until():  # noqa: ASYNC110 - it waits for any condition
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await work


async def test_a_key_is_handled_once_however_often_it_was_added() -> None:
    queue: WorkQueue[str] = WorkQueue()
    seen: Counter[str] = Counter()

    async def handle(key: str) -> None:
        seen[key] += 1

    for _ in range(100):
        queue.add("a")
    queue.add("b")
    await drain(queue, handle, lambda: len(seen) == 2)
    assert seen == {"a": 1, "b": 1}


async def test_a_key_is_never_handled_by_two_workers_and_an_add_meanwhile_is_not_lost() -> None:
    queue: WorkQueue[str] = WorkQueue()
    active = peak = count = 0

    async def handle(key: str) -> None:
        nonlocal active, peak, count
        active, count = active + 1, count + 1
        peak = max(peak, active)
        if count < 3:
            queue.add(key)
        await asyncio.sleep(0.02)
        active -= 1

    queue.add("a")
    await drain(queue, handle, lambda: count >= 3)
    assert (peak, count) == (1, 3)


async def test_a_failure_is_tried_again_and_further_apart(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workqueue, "FIRST_RETRY_SECONDS", 0.01)
    queue: WorkQueue[str] = WorkQueue()
    times: list[float] = []

    async def handle(key: str) -> None:
        times.append(asyncio.get_running_loop().time())
        if len(times) < 4:
            raise ValueError("no")

    queue.add("a")
    await drain(queue, handle, lambda: len(times) >= 4)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert len(times) == 4
    # Never sooner than the back-off less its jitter; a busy machine may be later.
    assert all(gap >= 0.8 * 0.01 * 2**number for number, gap in enumerate(gaps, 1))
    assert "ValueError: no" in caplog.text


async def test_a_slow_key_does_not_hold_up_the_others() -> None:
    queue: WorkQueue[str] = WorkQueue()
    seen: list[str] = []

    async def handle(key: str) -> None:
        if key == "slow":
            await asyncio.sleep(10)
        seen.append(key)

    for key in ("slow", "b", "c", "d"):
        queue.add(key)
    await drain(queue, handle, lambda: len(seen) >= 3, workers=2)
    assert sorted(seen) == ["b", "c", "d"]


async def test_the_sooner_of_two_times_counts() -> None:
    queue: WorkQueue[str] = WorkQueue()
    seen: list[str] = []

    async def handle(key: str) -> None:
        seen.append(key)

    queue.add("a", 100)
    queue.add("a", 0.01)
    queue.add("a", 50)
    await drain(queue, handle, lambda: bool(seen))
    assert seen == ["a"]
