"""Tables of the documentation that are written from the code."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from tunesmith.api.methods import MEMBERS, Method
from tunesmith.decide import reasons
from tunesmith.decide.endings import ENDINGS
from tunesmith.schema.pages import fields_table, objects
from tunesmith.schema.structural import structural
from tunesmith.training.capabilities import AXES, REFUSED, UNVERIFIED, Cell, Refused, axes_of, verdict

SOURCES = ("referenceModel", "teacher", "rewards[].model")
"""Members of methods' options that are a model's source, as spec.model is."""


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


def options_table(method: str) -> str:
    """The options of a method, and of what is in them."""
    schema = structural(Method)["properties"][MEMBERS[method]]
    tables = [
        (fields_table(node), path)
        for path, node in objects(MEMBERS[method], schema)
        if node.get("properties") and not path.startswith(tuple(f"{MEMBERS[method]}.{one}" for one in SOURCES))
    ]
    return "\n\n".join(f"`{path}`:\n\n{table}" if number else table for number, (table, path) in enumerate(tables)) or (
        "There are none."
    )


def example(path: Path) -> str:
    """A file, as it stands."""
    return f"```yaml\n{path.read_text()}```"


def slug(method: str) -> str:
    """The name of a method's page and of its example."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", MEMBERS[method]).lower()


TABLES: dict[str, dict[str, Callable[[], str]]] = {
    "docs/reasons.md": {"reasons": reasons_table},
    "docs/reliability.md": {"endings": endings_table},
    "docs/capabilities.md": {
        "capabilities": capabilities_table,
        "refused": refused_table,
        "unverified": unverified_table,
    },
    **{
        f"docs/methods/{slug(method)}.md": {
            "options": partial(options_table, method),
            "example": partial(example, Path("examples/methods") / f"{slug(method)}.yaml"),
        }
        for method in MEMBERS
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
