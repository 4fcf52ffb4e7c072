"""What the chart's tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from tunesmith_cluster.environments import ROOT

CHART = ROOT / "helm" / "tunesmith"
NAMESPACE = "tunesmith-system"

Manifests = list[dict[str, Any]]
Render = Callable[..., Manifests]


class Refused(Exception):
    """Helm refused the values; the text is what it said."""


def one(manifests: Manifests, kind: str, name: str | None = None) -> dict[str, Any]:
    """The only manifest of this kind (and name)."""
    (found,) = [m for m in manifests if m["kind"] == kind and name in (None, m["metadata"]["name"])]
    return found


def read(path: Path) -> Any:
    """A YAML file."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))
