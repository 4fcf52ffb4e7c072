"""Tables of the documentation that are written from the code."""

from __future__ import annotations

import re
from pathlib import Path

from tunesmith.decide.endings import ENDINGS


def endings_table() -> str:
    """How attempts end, and what follows."""
    rows = [f"| `{name}` | {ending.when} | {ending.action.value} |" for name, ending in ENDINGS.items()]
    return "\n".join(["| reason | when | what follows |", "|---|---|---|", *rows])


TABLES = {"docs/reliability.md": {"endings": endings_table}}


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
