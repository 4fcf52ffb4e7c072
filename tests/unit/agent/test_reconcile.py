"""The decision table of the agent."""

from __future__ import annotations

from typing import Any

import pytest
from tunesmith.agent.engine import InFlight
from tunesmith.agent.reconcile import (
    Delete,
    Failure,
    Load,
    Prepare,
    Record,
    Swap,
    Unload,
    Version,
    View,
    decide,
)
from tunesmith.agent.store import Source

STORE = "/store"
V1, V2 = f"{STORE}/a/{'1' * 64}", f"{STORE}/a/{'2' * 64}"


def source(text: str = "one") -> Source:
    return Source(uri=f"file:///{text}", path=f"/{text}", fetch=False, secret=None, fingerprint="")


ONE, TWO = source("one"), source("two")


def failure(of: Source = ONE, permanent: bool = True, retry_at: float = 0) -> Failure:
    return Failure(of, "bad", permanent, 1, retry_at)


def view(wanted: Any = None, record: Record | None = None, engine: Any = (), **more: Any) -> View:
    return View(
        now=1000.0,
        wanted={"a": wanted} if wanted else {},
        records={"a": record} if record else {},
        engine=dict(engine) if engine is not None else None,
        store=STORE,
        **more,
    )


PREPARED = Record(version=Version(ONE, V1))
SERVED = Record(version=Version(ONE, V1), good=V1)
NEWER = Record(version=Version(TWO, V2), good=V1)

TABLE = {
    "nothing wanted, nothing there": (view(), []),
    "wanted: prepare it": (view(ONE), [Prepare("a", ONE)]),
    "prepared before the engine is up, too": (view(ONE, engine=None), [Prepare("a", ONE)]),
    "being prepared: wait": (view(ONE, Record(preparing=ONE)), []),
    "another version is being prepared": (view(TWO, Record(preparing=ONE)), [Prepare("a", TWO)]),
    "prepared: load it": (view(ONE, PREPARED), [Load("a", V1)]),
    "prepared, but the engine is down: wait": (view(ONE, PREPARED, engine=None), []),
    "served: nothing to do": (view(ONE, SERVED, {"a": V1}), []),
    "gone from the engine: load it again": (view(ONE, SERVED), [Load("a", V1)]),
    "another folder under the name: swap": (view(ONE, SERVED, {"a": V2}), [Swap("a", V2, V1)]),
    "loaded from outside of the store: swap": (view(ONE, SERVED, {"a": "/tmp/x"}), [Swap("a", "/tmp/x", V1)]),
    "newer version prepared: swap": (view(TWO, NEWER, {"a": V1}), [Swap("a", V1, V2)]),
    "newer version wanted: the old one serves on": (view(TWO, SERVED, {"a": V1}), [Prepare("a", TWO)]),
    "... and comes back after a restart": (view(TWO, SERVED), [Prepare("a", TWO), Load("a", V1)]),
    "failed for good: not again": (view(ONE, Record(failure=failure())), []),
    "failed for now: not yet": (view(ONE, Record(failure=failure(permanent=False, retry_at=1001))), []),
    "failed for now, and it is time": (
        view(ONE, Record(failure=failure(permanent=False, retry_at=999))),
        [Prepare("a", ONE)],
    ),
    "failed, but something else is wanted now": (view(TWO, Record(failure=failure())), [Prepare("a", TWO)]),
    "refused by the engine for good: not again": (view(ONE, Record(version=Version(ONE, V1), failure=failure())), []),
    "refused by the engine for now, and it is time": (
        view(ONE, Record(version=Version(ONE, V1), failure=failure(permanent=False, retry_at=999))),
        [Load("a", V1)],
    ),
    "newer version is bad: the old one stays": (
        view(TWO, Record(version=Version(TWO, V2), good=V1, failure=failure(TWO)), {"a": V1}),
        [],
    ),
    "newer version is bad, the engine restarted: the old one comes back": (
        view(TWO, Record(version=Version(TWO, V2), good=V1, failure=failure(TWO))),
        [Load("a", V1)],
    ),
    "not wanted any more: unload": (view(engine={"a": V1}), [Unload("a", V1)]),
    "loaded by the engine's own arguments: not ours": (view(engine={"b": "/models/b"}), []),
    "a folder whose name only begins like the store's is not ours": (view(engine={"b": "/store2/b/x"}), []),
}


@pytest.mark.parametrize("case", TABLE)
def test_decision(case):
    given, steps = TABLE[case]
    assert decide(given) == steps


OLD = {"folders": [V1], "unloaded": {V1: 900.0}, "in_flight": {}}

GARBAGE = {
    "unused and drained": (view(**OLD), True),
    "loaded: never": (view(ONE, engine={"a": V1}, **OLD), False),
    "about to be loaded": (view(ONE, PREPARED, **OLD), False),
    "served last, for when the newer one is bad": (
        view(TWO, Record(good=V1, version=Version(TWO, V2)), {"a": V2}, **OLD),
        False,
    ),
    "replaced": (view(TWO, Record(good=V2, version=Version(TWO, V2)), {"a": V2}, **OLD), True),
    "being prepared: what comes out may be this one": (view(ONE, Record(preparing=ONE), **OLD), False),
    "about to be prepared": (view(ONE, **OLD), False),
    "of a source that failed for good": (view(ONE, Record(failure=failure()), **OLD), True),
    "the engine is down: nobody knows": (view(engine=None, **OLD), False),
    "just unloaded": (view(**{**OLD, "unloaded": {V1: 995.0}}), False),
    "never seen before: the clock begins now": (view(**{**OLD, "unloaded": {}}), False),
    "a request that began before is running": (view(**{**OLD, "in_flight": {"a": InFlight(1, 150)}}), False),
    "... or may have": (view(**{**OLD, "in_flight": {"a": InFlight(1, 99.5)}}), False),
    "all requests began later": (view(**{**OLD, "in_flight": {"a": InFlight(5, 50)}}), True),
    "a request of another adapter is running": (view(**{**OLD, "in_flight": {"b": InFlight(1, 150)}}), True),
    "a request of an unknown model is running": (view(**{**OLD, "in_flight": {"*": InFlight(1, 150)}}), False),
    "the guard says nothing: wait long": (view(**{**OLD, "in_flight": None}), False),
    "the guard says nothing, and long has passed": (
        view(**{**OLD, "in_flight": None, "unloaded": {V1: 600.0}}),
        True,
    ),
}


@pytest.mark.parametrize("case", GARBAGE)
def test_files_are_deleted_only_when_nobody_can_read_them(case):
    given, deleted = GARBAGE[case]
    assert (Delete(V1) in decide(given)) == deleted


def test_a_failed_adapter_stops_no_other():
    records = {"a": Record(failure=failure()), "b": Record(version=Version(TWO, "/store/b/2"))}
    given = View(now=0, wanted={"a": ONE, "b": TWO, "c": ONE}, records=records, engine={}, store=STORE)
    assert decide(given) == [Load("b", "/store/b/2"), Prepare("c", ONE)]
