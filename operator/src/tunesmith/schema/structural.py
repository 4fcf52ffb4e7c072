"""pydantic model -> structural OpenAPI v3 schema, the subset of JSON Schema that the API server accepts.

https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

FORBIDDEN = frozenset({"$ref", "$defs", "const", "oneOf", "anyOf", "prefixItems", "uniqueItems", "discriminator"})
# Values under these keys are data or text, not schemas.
OPAQUE = frozenset({"default", "enum", "x-kubernetes-validations", "x-kubernetes-list-map-keys"})


class _Generator(GenerateJsonSchema):
    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])  # an optional field is absent, never null

    def literal_schema(self, schema: core_schema.LiteralSchema) -> JsonSchemaValue:
        result = super().literal_schema(schema)
        if "const" in result:
            result["enum"] = [result.pop("const")]
        return result

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        return {"format": "int64", **super().int_schema(schema)}

    def union_schema(self, schema: core_schema.UnionSchema) -> JsonSchemaValue:
        return {}  # the only union is a quantity, which carries x-kubernetes-int-or-string


def structural(model: type[BaseModel]) -> dict[str, Any]:
    """The schema of `model` with every definition inlined. Raises ValueError for what CRDs cannot hold."""
    raw = model.model_json_schema(schema_generator=_Generator, by_alias=True, mode="validation")
    definitions = raw.pop("$defs", {})
    schema: dict[str, Any] = _inline(raw, definitions)
    _check(schema, model.__name__)
    return schema


def _inline(node: Any, definitions: dict[str, Any]) -> Any:
    if isinstance(node, list):
        return [_inline(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[1]]
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    result: dict[str, Any] = {}
    for key, value in node.items():
        if key == "title" and isinstance(value, str):
            continue
        if key == "description":
            value = " ".join(value.split())
        if key == "properties":
            value = {name: _inline(inner, definitions) for name, inner in value.items()}
        elif key not in OPAQUE:
            value = _inline(value, definitions)
        result[key] = value
    for bound, side in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if bound in result:  # OpenAPI v3.0 writes an open bound as a flag beside the bound
            result[side], result[bound] = result[bound], True
    if result.get("additionalProperties") is False or result.get("x-kubernetes-preserve-unknown-fields"):
        result.pop("additionalProperties", None)
    if result.get("default", ...) is None:
        del result["default"]
    elif isinstance(result.get("default"), dict):
        result["default"] = without_nulls(result["default"])
    return result


def _check(node: Any, path: str) -> None:
    if isinstance(node, list):
        for index, item in enumerate(node):
            _check(item, f"{path}[{index}]")
    if not isinstance(node, dict):
        return
    if found := FORBIDDEN & node.keys():
        raise ValueError(f"{path}: a CRD cannot hold {sorted(found)}")
    for key, value in node.items():
        if key == "properties":
            for name, inner in value.items():
                if not inner.get("description"):
                    raise ValueError(f"{path}.{name}: has no description")
                _check(inner, f"{path}.{name}")
        elif key not in OPAQUE:
            _check(value, f"{path}.{key}")


def without_nulls(value: dict[str, Any]) -> dict[str, Any]:
    """What is null is absent in a resource; the API server takes no such default."""
    return {
        key: without_nulls(inner) if isinstance(inner, dict) else inner
        for key, inner in value.items()
        if inner is not None
    }
