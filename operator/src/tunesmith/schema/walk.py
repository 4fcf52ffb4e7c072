"""Going through a resource along the schema of its kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from tunesmith.schema.crd import KINDS, crd

Node = Mapping[str, Any]
"""A structural schema, or a part of one."""


@cache
def schema_of(kind: str) -> dict[str, Any]:
    """The structural schema of a kind, as in its CRD."""
    [found] = [one for one in KINDS if one.name == kind]
    result: dict[str, Any] = crd(found)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return result


def inner(node: Node, value: Any, path: str) -> Iterator[tuple[Node, Any, str]]:
    """(schema, value, path) of what is directly in a value. The schema of what is not known is empty."""
    if isinstance(value, list | tuple):
        yield from ((node.get("items", {}), one, f"{path}[{number}]") for number, one in enumerate(value))
    elif isinstance(value, Mapping):
        named, others = node.get("properties", {}), node.get("additionalProperties", {})
        for name, one in value.items():
            yield named.get(name, others if isinstance(others, Mapping) else {}), one, f"{path}.{name}".lstrip(".")


def unknown(node: Node, value: Any, path: str = "") -> Iterator[tuple[str, str, list[str]]]:
    """(path, name, names that are known there) of each field that the schema does not have."""
    known = node.get("properties")
    if isinstance(value, Mapping) and known is not None and not node.get("x-kubernetes-preserve-unknown-fields"):
        yield from ((f"{path}.{name}".lstrip("."), str(name), sorted(known)) for name in value if name not in known)
    for below in inner(node, value, path):
        yield from unknown(*below)
