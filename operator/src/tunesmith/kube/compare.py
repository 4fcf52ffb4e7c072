"""Whether a live object is what it should be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tunesmith.api.quantity import amount


def covers(live: Any, wanted: Any) -> bool:
    """Whether `live` has everything that `wanted` says. What the API server filled in besides does not matter;
    quantities are compared by value, since it may write them in another way.
    """
    if isinstance(wanted, dict):
        return isinstance(live, dict) and all(_field(key, live.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(live or [], list) and len(live or []) == len(wanted) and all(map(covers, live or [], wanted))
    if wanted == "":
        return not live  # an empty text is stored as none
    return bool(live == wanted)


def drops(live: Mapping[str, Any], wanted: Mapping[str, Any], manager: str) -> bool:
    """Whether `live` has something that `manager` applied and does not want any more, which server-side apply takes
    away: by https://kubernetes.io/docs/reference/using-api/server-side-apply/#field-management.
    """
    return any(
        _drops(entry.get("fieldsV1") or {}, wanted)
        for entry in live["metadata"].get("managedFields", ())
        if (entry["manager"], entry["operation"]) == (manager, "Apply") and not entry.get("subresource")
        # Of another version the fields may have other names.
        if entry["apiVersion"] == wanted["apiVersion"]
    )


def _drops(fields: Mapping[str, Any], wanted: Any) -> bool:
    for key, inner in fields.items():
        kind, _, name = key.partition(":")
        if kind == "f":
            if not isinstance(wanted, dict) or wanted.get(name) is None or _drops(inner, wanted[name]):
                return True
        elif kind == "k":  # an item of a list, by the fields that tell items apart; defaults among them
            own = json.loads(name)
            items = [one for one in wanted or () if all(one.get(part, value) == value for part, value in own.items())]
            if not items or _drops(inner, items[0]):
                return True
    return False


def _field(key: str, live: Any, wanted: Any) -> bool:
    match key:
        case "limits" | "requests":
            return isinstance(live, dict) and all(_same(live.get(name), value) for name, value in wanted.items())
        case "averageValue":
            return _same(live, wanted)
        case _:
            return covers(live, wanted)


def _same(live: Any, wanted: Any) -> bool:
    """Whether two quantities are."""
    return live is not None and amount(live) == amount(wanted)
