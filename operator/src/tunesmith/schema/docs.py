"""Tables of the documentation that are written from the code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from tunesmith.decide import reasons
from tunesmith.decide.endings import ENDINGS
from tunesmith.training.capabilities import AXES, REFUSED, UNVERIFIED, Cell, Refused, axes_of, verdict


def endings_table() -> str:
    """How attempts end, and what follows."""
    rows = [f"| `{name}` | {ending.when} | {ending.action.value} |" for name, ending in ENDINGS.items()]
    return "\n".join(["| reason | when | what follows |", "|---|---|---|", *rows])


def capabilities_table() -> str:
    """Each method as usual, and with each other value of each axis."""
    common = Cell("")
    columns = [
        (axis, v) for axis, values in AXES.items() if axis != "method" for v in values if v != getattr(common, axis)
    ]
    rows = [["method", "as usual", *(value for _, value in columns)], ["---"] * (2 + len(columns))]
    for method in AXES["method"]:
        usual, axes = Cell(method), axes_of(method)
        others = (_mark(replace(usual, **{axis: value})) if axis in axes else "" for axis, value in columns)
        rows.append([method, _mark(usual), *others])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _mark(cell: Cell) -> str:
    found = verdict(cell)
    if found is None:
        return "yes"
    return f"no ({REFUSED.index(found) + 1})" if isinstance(found, Refused) else "GPU"


def _where(where: Mapping[str, tuple[str, ...]]) -> str:
    return "; ".join(f"{axis} {', '.join(values)}" for axis, values in where.items())


def refused_table() -> str:
    """What is refused, and what to do instead."""
    rows = [
        f"| {number} | {_where(entry.where)} | `{entry.field}` | {entry.why} | {entry.instead} |"
        for number, entry in enumerate(REFUSED, 1)
    ]
    return "\n".join(["| | combination | field | why | instead |", "|---|---|---|---|---|", *rows])


def unverified_table() -> str:
    """What needs a GPU to be seen, and the row of gpu-verification.md."""
    rows = [f"| {_where(entry.where)} | {entry.row} |" for entry in UNVERIFIED]
    return "\n".join(["| combination | row of gpu-verification.md |", "|---|---|", *rows])


def reasons_table() -> str:
    """What each reason means, and what to do."""
    rows = [f"| `{name}` | {reasons.meaning(name)} | {reasons.todo(name)} |" for name in reasons.every()]
    return "\n".join(["| reason | what it means | what to do |", "|---|---|---|", *rows])


TABLES = {
    "docs/reasons.md": {"reasons": reasons_table},
    "docs/reliability.md": {"endings": endings_table},
    "docs/capabilities.md": {
        "capabilities": capabilities_table,
        "refused": refused_table,
        "unverified": unverified_table,
    },
}


def fill(text: str, tables: dict[str, str]) -> str:
    """The page with each table between its `<!-- name -->` and `<!-- /name -->`. Raises ValueError where they lack."""
    for name, table in tables.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"no <!-- {name} --> … <!-- /{name} -->")
        text = pattern.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)  # type: ignore[misc]
    return text


def write(source: Path, target: Path) -> None:
    """Write the pages of `source` with their tables to `target`."""
    for page, tables in TABLES.items():
        path = target / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(fill((source / page).read_text(), {name: make() for name, make in tables.items()}))
