"""What the API server would say of a resource: the schema of its kind, and the CEL rules in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError
from tunesmith.api.finetunejob import FineTuneJob
from tunesmith.schema.walk import Node, inner, schema_of, unknown
from tunesmith.training.matrix import PlanError, refuse

from tunesmith_trainer.errors import ConfigError

MOST = 5
"""Problems that are told at once."""


def check(resource: dict[str, Any]) -> FineTuneJob:
    """The job that `resource` describes. Raises ConfigError for what the API server or the operator would refuse."""
    schema = schema_of("FineTuneJob")
    problems = [
        f"{path}: there is no such field; known are {', '.join(known)}" for path, _, known in unknown(schema, resource)
    ]
    try:
        job = FineTuneJob.model_validate(resource)
    except ValidationError as error:
        problems += [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise ConfigError("; ".join(problems[:MOST])) from None
    problems += broken_rules(schema, defaulted(schema, resource), "")
    if problems:
        raise ConfigError("; ".join(problems[:MOST]))
    try:
        refuse(job.spec)
    except PlanError as error:
        raise ConfigError(str(error)) from None
    return job


def defaulted(node: Node, value: Any) -> Any:
    """`value` with the schema's defaults, as the API server stores it."""
    if isinstance(value, list):
        return [defaulted(node.get("items", {}), one) for one in value]
    if not isinstance(value, dict):
        return value
    named = node.get("properties", {})
    missing = {n: one["default"] for n, one in named.items() if n not in value and "default" in one}
    return {name: defaulted(named.get(name, {}), one) for name, one in (missing | value).items()}


def broken_rules(node: Node, value: Any, path: str) -> Iterator[str]:
    """Messages of the CEL rules that a value breaks, but for those that compare it with an earlier one."""
    import cel

    for rule in node.get("x-kubernetes-validations", []):
        if "oldSelf" not in rule["rule"] and not cel.evaluate(rule["rule"], {"self": value}):
            yield f"{path or 'metadata.name'}: {rule['message']}"
    for below in inner(node, value, path):
        yield from broken_rules(*below)
