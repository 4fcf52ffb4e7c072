"""Rows as a table on disk: JSON, mapped into memory, decoded when they are asked for."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, overload

from tunesmith_trainer.data import Row
from tunesmith_trainer.media import Medium

if TYPE_CHECKING:
    from datasets import Dataset

BATCH = 1000
COLUMN = "row"
DEFAULTS = {
    one.name: one.default_factory() if one.default_factory is not MISSING else one.default for one in fields(Row)
}


def encode(row: Row) -> str:
    """A row as JSON, without what is not set."""
    found = {name: getattr(row, name) for name in DEFAULTS}
    return json.dumps({k: v for k, v in found.items() if v != DEFAULTS[k]}, ensure_ascii=False, default=other)


def other(value: Any) -> Any:
    """What JSON does not know: bytes, media, and dates as text."""
    if isinstance(value, Medium):
        return {"$medium": {one.name: getattr(value, one.name) for one in fields(value)}}
    return {"$bytes": base64.b64encode(value).decode()} if isinstance(value, bytes) else str(value)


def decode(text: str) -> Row:
    """The row of a JSON text."""
    found = json.loads(text, object_hook=known)
    for name, default in DEFAULTS.items():
        if isinstance(default, tuple) and name in found:
            found[name] = tuple(tuple(one) if isinstance(one, list) else one for one in found[name])
    return Row(**found)


def known(value: dict[str, Any]) -> Any:
    """Bytes or a medium, where an object stands for one."""
    match list(value):
        case ["$bytes"]:
            return base64.b64decode(value["$bytes"])
        case ["$medium"]:
            return Medium(**value["$medium"] | {"frames": tuple(value["$medium"]["frames"])})
    return value


@dataclass(frozen=True)
class Rows(Sequence[Row]):
    """The rows of a table."""

    table: Dataset
    key: str
    """The hash of all that they depend on."""

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> list[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | list[Row]:
        found = self.table[at][COLUMN]
        return decode(found) if isinstance(at, int) else [decode(one) for one in found]

    def __iter__(self) -> Iterator[Row]:
        for begin in range(0, len(self), BATCH):
            yield from self[begin : begin + BATCH]
