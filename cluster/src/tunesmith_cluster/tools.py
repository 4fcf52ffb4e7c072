"""helm and kubectl: the user's own, or those that the local cluster builds."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tunesmith_cluster import build
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.progress import Reporter


def own(name: str) -> Path | None:
    """The user's own helm or kubectl: the one that TUNESMITH_HELM (or _KUBECTL) names, else the one on PATH."""
    variable = f"TUNESMITH_{name.upper()}"
    named = os.environ.get(variable)
    found = shutil.which(named or name)
    if named and not found:
        raise ClusterError(f"{variable} is {named}, which is no program: correct it, or unset it to use one on PATH")
    return Path(found) if found else None


def find(name: str, paths: Paths, reporter: Reporter) -> Path:
    """TUNESMITH_HELM (or _KUBECTL), the one on PATH, or the one in the cache, which is built if missing."""
    if found := own(name):
        return found
    module = next(module for module in build.MODULES if name in module.commands)
    build.ensure(paths, [module], reporter)
    return build.binary(paths.cache, name)
