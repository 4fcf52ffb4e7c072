"""A resource is looked at before it is sent: unknown fields and wrong values, each with its path.

What is left is the API server's: the rules between fields (CEL).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from itertools import chain, islice
from reprlib import Repr
from typing import Any

from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from tunesmith.api.base import API_VERSION, Model
from tunesmith.client.errors import Invalid
from tunesmith.schema.crd import KINDS
from tunesmith.schema.walk import schema_of, unknown

MOST = 20
"""Problems that are told at once."""
LONG = Repr()
LONG.maxstring = LONG.maxother = LONG.maxlong = 200
MODELS = {kind.name: kind.model for kind in KINDS}


def check(body: Mapping[str, Any]) -> None:
    """Raise Invalid where the resource cannot be right."""
    kind, version = body.get("kind"), body.get("apiVersion")
    name = (body.get("metadata") or {}).get("name")
    what = f"{kind} {name}"
    if kind not in MODELS or version != API_VERSION:
        raise Invalid(f"{version} {kind} is no kind of tunesmith", f"{API_VERSION} has {', '.join(MODELS)}")
    if not name:
        raise Invalid(f"a {kind} has no name", "set metadata.name")
    found = list(islice(chain(unknown_fields(body), wrong(body)), MOST + 1))
    if found:
        more = ["and more: mend these first"] if len(found) > MOST else []
        raise Invalid.fields(what, [*found[:MOST], *more])


def unknown_fields(body: Mapping[str, Any]) -> Iterator[str]:
    """Fields that the kind does not have, with the name that was meant."""
    others = {"apiVersion", "kind", "metadata", "status"}
    own = {key: value for key, value in body.items() if key not in others}
    known = {key: value for key, value in schema_of(body["kind"])["properties"].items() if key not in others}
    for path, name, names in unknown({"properties": known}, own):
        close = difflib.get_close_matches(name, names, 1, 0.6)
        meant = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
        yield f"{path}: unknown field; {meant}"


def spelled(kind: str, spec: Mapping[str, Any]) -> Any:
    """The spec with fields in the API's spelling (learningRate) where they are in Python's (learning_rate)."""
    return _spelled(spec, schema_of(kind)["properties"]["spec"])


def _spelled(value: Any, schema: Mapping[str, Any]) -> Any:
    if isinstance(value, Model):
        value = value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if isinstance(value, list | tuple):
        return [_spelled(one, schema.get("items", {})) for one in value]
    if not isinstance(value, Mapping):
        return value
    properties = schema.get("properties", {})
    names = {key: key if key in properties or to_camel(key) not in properties else to_camel(key) for key in value}
    return {names[key]: _spelled(inner, properties.get(names[key], {})) for key, inner in value.items()}


def wrong(body: Mapping[str, Any]) -> list[str]:
    """Values that a field cannot have, and fields that are missing."""
    try:
        MODELS[body["kind"]].model_validate({"spec": body.get("spec")})
    except ValidationError as error:
        return told(error)
    return []


def told(error: ValidationError) -> list[str]:
    """What the models found, each with its field."""
    return [_problem(one) for one in error.errors()]


def _problem(error: Any) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error["loc"]).lstrip(".")
    if error["type"] == "missing":
        return f"{path}: required"
    found = error["input"]
    shown = LONG.repr(found) if not isinstance(found, dict | list) else type(found).__name__
    return f"{path}: {error['msg'][:1].lower()}{error['msg'][1:]}, found {shown}"
