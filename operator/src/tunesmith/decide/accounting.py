"""Device-hours of a job: asked for, used, and lost."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from tunesmith.api.base import Resources
from tunesmith.api.job import Accounting
from tunesmith.api.quantity import amount
from tunesmith.training.matrix import GPUS


def devices(resources: Resources) -> tuple[str, float] | None:
    """(resource, number) of the devices of one pod: its GPUs, else its CPU cores. None: it asks for neither."""
    wanted = {**(resources.requests or {}), **(resources.limits or {})}
    for name in (*GPUS, "cpu"):
        if name in wanted:
            return name, float(amount(wanted[name]))
    return None


def advance(
    old: Accounting | None,
    wanted: tuple[str, float],
    nodes: int,
    *,
    now: str,
    held: bool,
    since: str | None,
    lost_seconds: float,
    prices: Mapping[str, float],
) -> Accounting:
    """The account up to `now`. `held`: whether pods were asked for since it was last written; `since`: from when on
    all of them ran, if they do; `lost_seconds`: work that has just turned out to be lost.
    """
    device, each = wanted
    count = each * nodes
    asked, used, lost = (old.asked_hours, old.used_hours, old.lost_hours) if old else (0.0, 0.0, 0.0)
    if old and held:
        asked += count * _hours(old.updated, now)
        if since:
            used += count * _hours(max(since, old.updated), now)
    lost += count * lost_seconds / 3600
    price = prices.get(device)
    return Accounting(
        device=device,
        count=count,
        asked_hours=round(asked, 6),
        used_hours=round(used, 6),
        lost_hours=round(lost, 6),
        cost=None if price is None else round(asked * price, 4),
        updated=now,
    )


def _hours(start: str, end: str) -> float:
    return max(0.0, (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds() / 3600)
