"""What the API server would say of a resource: the schema of its kind, and the CEL rules in it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from pydantic import ValidationError
from tunesmith.api.finetunejob import FineTuneJob
from tunesmith.schema.crd import KINDS, crd
from tunesmith.training.matrix import PlanError, refuse

from tunesmith_trainer.errors import ConfigError

MOST = 5
"""Problems that are told at once."""


@cache
def schema(kind: str) -> dict[str, Any]:
    """The schema of a kind's resources."""
    [found] = [crd(one) for one in KINDS if one.name == kind]
    return dict(found["spec"]["versions"][0]["schema"]["openAPIV3Schema"])


def check(resource: dict[str, Any]) -> FineTuneJob:
    """The job that `resource` describes. Raises ConfigError for what the API server or the operator would refuse."""
    problems = list(unknown(schema("FineTuneJob"), resource, ""))
    try:
        job = FineTuneJob.model_validate(resource)
    except ValidationError as error:
        problems += [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise ConfigError("; ".join(problems[:MOST])) from None
    problems += broken_rules(schema("FineTuneJob"), defaulted(schema("FineTuneJob"), resource), "")
    if problems:
        raise ConfigError("; ".join(problems[:MOST]))
    try:
        refuse(job.spec)
    except PlanError as error:
        raise ConfigError(str(error)) from None
    return job


def inner(node: dict[str, Any], value: Any, path: str) -> Iterator[tuple[dict[str, Any], Any, str]]:
    """(schema, value, path) of what is directly in a value."""
    if isinstance(value, list):
        yield from ((node.get("items", {}), one, f"{path}[{number}]") for number, one in enumerate(value))
    elif isinstance(value, dict):
        named, others = node.get("properties", {}), node.get("additionalProperties", {})
        for name, one in value.items():
            yield named.get(name, others if isinstance(others, dict) else {}), one, f"{path}.{name}".removeprefix(".")


def unknown(node: dict[str, Any], value: Any, path: str) -> Iterator[str]:
    """Fields that the schema does not have."""
    known = node.get("properties")
    if isinstance(value, dict) and known and not node.get("x-kubernetes-preserve-unknown-fields"):
        for name in value.keys() - known.keys():
            where = f"{path}.{name}".removeprefix(".")
            yield f"{where}: there is no such field; known are {', '.join(sorted(known))}"
    for below in inner(node, value, path):
        yield from unknown(*below)


def defaulted(node: dict[str, Any], value: Any) -> Any:
    """`value` with the schema's defaults, as the API server stores it."""
    if isinstance(value, list):
        return [defaulted(node.get("items", {}), one) for one in value]
    if not isinstance(value, dict):
        return value
    named = node.get("properties", {})
    missing = {n: one["default"] for n, one in named.items() if n not in value and "default" in one}
    return {name: defaulted(named.get(name, {}), one) for name, one in (missing | value).items()}


def broken_rules(node: dict[str, Any], value: Any, path: str) -> Iterator[str]:
    """Messages of the CEL rules that a value breaks, but for those that compare it with an earlier one."""
    import cel

    for rule in node.get("x-kubernetes-validations", []):
        if "oldSelf" not in rule["rule"] and not cel.evaluate(rule["rule"], {"self": value}):
            yield f"{path or 'metadata.name'}: {rule['message']}"
    for below in inner(node, value, path):
        yield from broken_rules(*below)
