"""Manifests: from files, from stdin, and out of flags."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tunesmith.api.base import API_VERSION
from tunesmith.client.errors import Invalid

Object = dict[str, Any]


def load(paths: list[Path]) -> list[Object]:
    """The objects of YAML and JSON files, of folders of them, and of stdin (-). Raises Invalid."""
    found: list[Object] = []
    for path in paths:
        if str(path) == "-":
            found += parse(sys.stdin.read(), "stdin")
        elif path.is_dir():
            for file in sorted(path.glob("*.y*ml")):
                found += parse(_text(file), str(file))
        else:
            found += parse(_text(path), str(path))
    if not found:
        raise Invalid(f"{', '.join(map(str, paths))}: there is no object in it")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def parse(text: str, where: str) -> list[Object]:
    """The objects of a text. Raises Invalid, which names the line."""
    try:
        documents = [one for one in yaml.safe_load_all(text) if one is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        raise Invalid(f"{place}: {getattr(error, 'problem', None) or error}", "it is no YAML") from error
    for one in documents:
        if not isinstance(one, dict) or not isinstance(one.get("metadata"), dict) or "kind" not in one:
            raise Invalid(f"{where}: a document has no apiVersion, kind and metadata", "`tunesmith init` writes one")
    return documents


def ours(body: Mapping[str, Any]) -> bool:
    """Whether the object is of one of our kinds."""
    return str(body.get("apiVersion", "")).startswith(API_VERSION.split("/")[0] + "/")


def assign(body: Object, assignments: list[str]) -> Object:
    """The object with fields changed: `training.maxSteps=10`, below spec. Values are read as YAML. Raises Invalid."""
    result = {**body, "spec": _copy(body.get("spec") or {})}
    for one in assignments:
        path, equals, text = one.partition("=")
        if not equals or not path:
            raise Invalid(f"--set {one}: expected FIELD=VALUE, for example training.maxSteps=10")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        target = result["spec"]
        *parents, last = path.removeprefix("spec.").split(".")
        for key in parents:
            target = target.setdefault(key, {})
            if not isinstance(target, dict):
                raise Invalid(f"--set {one}: {key} holds no fields")
        target[last] = value
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(one) for one in value] if isinstance(value, list) else value
