"""Pages of the documentation that are a kind's schema, field by field."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tunesmith.schema.crd import Kind, crd

Node = Mapping[str, Any]
HEAD = """<!-- Generated from operator/src/tunesmith/api by `make generate`. Do not edit. -->
# {name}

{description}

`kubectl get {short}` shows {columns}. `kubectl explain {short}.spec` has the same as this page.

## Rules of the whole resource

{rules}
"""


def kind_page(kind: Kind) -> str:
    """The page of a kind: its columns, its rules, and each field of its spec and its status."""
    version = crd(kind)["spec"]["versions"][0]
    schema: Node = version["schema"]["openAPIV3Schema"]
    columns = ", ".join(column["name"] for column in version["additionalPrinterColumns"] if not column.get("priority"))
    rules = "\n".join(_rules(schema))
    parts = [
        HEAD.format(name=kind.name, description=schema["description"], short=kind.short, columns=columns, rules=rules)
    ]
    for name in ("spec", "status"):
        parts += [_section(path, node) for path, node in objects(name, schema["properties"][name])]
    return "\n".join(parts)


def fields_table(node: Node) -> str:
    """A row for each field of an object."""
    required = set(node.get("required", ()))
    rows = [
        f"| `{name}` | {_type(field)} | {_default(field, name in required)} | {_cell(field['description'])} |"
        for name, field in node.get("properties", {}).items()
    ]
    return "\n".join(["| field | type | default | |", "|---|---|---|---|", *rows])


def _section(path: str, node: Node) -> str:
    rules = _rules(node)
    level = "##" if "." not in path else "###"
    body = [f"{level} {path}", "", _cell(node.get("description", "")), "", fields_table(node), ""]
    return "\n".join([*body, *rules, ""] if rules else body)


def objects(path: str, node: Node) -> Iterator[tuple[str, Node]]:
    """(path, schema) of the object, then of all that are in it, however deep."""
    yield path, node
    for name, field in node.get("properties", {}).items():
        inner, where = (
            (field["items"], f"{path}.{name}[]") if field.get("type") == "array" else (field, f"{path}.{name}")
        )
        if inner.get("properties"):
            yield from objects(where, inner)


def _rules(node: Node) -> list[str]:
    return [f"- {_cell(rule['message'])}" for rule in node.get("x-kubernetes-validations", ())]


def _type(field: Node) -> str:
    """The type for people, with what bounds it."""
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("x-kubernetes-int-or-string"):
        return "quantity"
    kind = str(field.get("type", "object"))
    if kind == "array":
        of = _type(field["items"])
        return "list, as in a Pod" if of == "as in a Pod" else f"list of {of}{'s' if of == 'object' else ''}"
    if kind == "object":
        return "map" if "additionalProperties" in field else "object" if "properties" in field else "as in a Pod"
    if kind in {"integer", "number"}:
        return f"{kind}{_bounds(field)}"
    return "text" if kind == "string" else kind


def _bounds(field: Node) -> str:
    """In words: of an interval with an open end, that end is not in it."""
    least, most = field.get("minimum"), field.get("maximum")
    parts = []
    if least is not None:
        parts.append(f"{'above' if field.get('exclusiveMinimum') else 'from'} {least:.12g}")
    if most is not None:
        parts.append(f"{'below' if field.get('exclusiveMaximum') else 'to'} {most:.12g}")
    return f" {' '.join(parts)}" if parts else ""


def _default(field: Node, required: bool) -> str:
    value = field.get("default")
    if value in (None, {}, []):
        return "**required**" if required else ""
    if isinstance(value, dict | list):
        return "see below"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str) -> str:
    """A text in a table: what Markdown or HTML would take for its own is written out."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
