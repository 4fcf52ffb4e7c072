"""Argo CD's health checks, run as Argo CD runs them: a Lua script that is given `obj` and returns a status."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lupa.lua51 import LuaRuntime
from tunesmith.api.kinds import MODELS
from tunesmith_cluster.environments import ROOT

CUSTOMIZATIONS = ROOT / "examples/argocd/resource_customizations"
KINDS = tuple(MODELS)


def folder(kind: str) -> Path:
    """Where Argo CD looks for a kind's health check."""
    return CUSTOMIZATIONS / "tunesmith.io" / kind


def health(resource: dict[str, Any], script: str | None = None) -> tuple[str, str]:
    """(status, message) of a resource. A runtime of its own for each look, without the host's functions."""
    lua = LuaRuntime(register_eval=False, register_builtins=False, unpack_returned_tuples=True)
    for name in ("os", "io", "require", "package", "debug", "load", "loadfile", "dofile", "python"):
        lua.globals()[name] = None
    lua.globals()["obj"] = lua.table_from(resource, recursive=True)
    found = lua.execute(script or (folder(resource["kind"]) / "health.lua").read_text(encoding="utf-8"))
    return str(found["status"]), str(found["message"])
