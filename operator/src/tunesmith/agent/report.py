"""What the agent says of the adapters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from tunesmith.agent.reconcile import Record
from tunesmith.agent.store import NAME
from tunesmith.serving.contract import AgentStatus, DesiredAdapter, ObservedAdapter, State


def refusals(state: State) -> dict[str, str]:
    """The names under which nothing can be served, and why."""
    found = {}
    for name, times in Counter(adapter.name for adapter in state.adapters).items():
        if not NAME.fullmatch(name):
            found[name] = f"{name!r} cannot be an adapter's name: letters, digits, '-', '.' and '_', at most 63"
        elif name == state.model_name:
            found[name] = f"{name} is the name of the model itself: give the adapter another"
        elif times > 1:
            found[name] = f"the name {name} is given to more than one adapter"
    return found


def is_ready(state: State | None, loaded: Mapping[str, str] | None, *, up: bool, settled: bool) -> bool:
    """A required adapter counts as served in an older version too: taking every pod out of its Service because a new
    version is bad would help nobody.
    """
    served = loaded or {}
    return state is not None and up and settled and all(a.name in served for a in state.adapters if a.required)


def report(
    state: State | None,
    records: Mapping[str, Record],
    loaded: Mapping[str, str] | None,
    *,
    up: bool,
    settled: bool,
    now: float,
) -> AgentStatus:
    """The status."""
    served = loaded or {}
    wanted = state.adapters if state else []
    refused = refusals(state) if state else {}
    return AgentStatus(
        revision=state.revision if state else 0,
        engine="Ready" if up else "Starting",
        ready=is_ready(state, loaded, up=up, settled=settled),
        adapters=[
            ObservedAdapter(
                name=a.name, uri=a.uri, state="Failed", reason="BadName", message=refused[a.name], permanent=True
            )
            if a.name in refused
            else _observe(a, records.get(a.name, Record()), served.get(a.name), now)
            for a in wanted
        ],
    )


def _observe(adapter: DesiredAdapter, record: Record, served: str | None, now: float) -> ObservedAdapter:
    name, uri = adapter.name, adapter.uri
    digest = served.rsplit("/", 1)[-1] if served else None
    if record.failure and record.failure.source.uri == uri:
        failure = record.failure
        return ObservedAdapter(
            name=name,
            uri=uri,
            state="Failed",
            digest=digest,
            reason=failure.reason,
            message=failure.message + (f" (version {digest[:12]} is served on)" if digest else ""),
            attempts=failure.attempts,
            permanent=failure.permanent,
            rank=failure.rank,
            next_retry=None if failure.permanent else _clock(failure.retry_at - now),
        )
    version = record.version if record.version and record.version.source.uri == uri else None
    if version and served == version.path:
        return ObservedAdapter(name=name, uri=uri, state="Ready", digest=digest)
    reason = "WaitingForEngine" if version else "Preparing" if record.preparing else None
    waiting = "waits for the engine" if version else "fetched and checked" if record.preparing else None
    return ObservedAdapter(name=name, uri=uri, state="Loading", digest=digest, reason=reason, message=waiting)


def _clock(seconds: float) -> str:
    """The time of day that many seconds from now."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
