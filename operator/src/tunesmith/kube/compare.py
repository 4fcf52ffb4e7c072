"""Whether a live object is what it should be."""

from __future__ import annotations

from typing import Any

from tunesmith.api.quantity import amount


def covers(live: Any, wanted: Any) -> bool:
    """Whether `live` has everything that `wanted` says. What the API server filled in besides does not matter;
    quantities are compared by value, since it may write them in another way.
    """
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(
            (_same_quantity(live.get(key), value) if _is_quantity_map(key) else covers(live.get(key), value))
            for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(live or [], list) and len(live or []) == len(wanted) and all(map(covers, live or [], wanted))
    if wanted == "":
        return not live  # an empty text is stored as none
    return bool(live == wanted)


def _is_quantity_map(key: str) -> bool:
    return key in {"limits", "requests"}


def _same_quantity(live: Any, wanted: dict[str, Any]) -> bool:
    if not isinstance(live, dict) or not wanted.keys() <= live.keys():
        return False
    return all(amount(live[key]) == amount(value) for key, value in wanted.items())
