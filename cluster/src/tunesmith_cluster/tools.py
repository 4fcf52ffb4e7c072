"""helm and kubectl: the user's own, or those that the local cluster builds."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tunesmith_cluster import build
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.progress import Reporter


def find(name: str, paths: Paths, reporter: Reporter) -> Path:
    """TUNESMITH_HELM (or _KUBECTL), the one on PATH, or the one in the cache, which is built if missing."""
    chosen = os.environ.get(f"TUNESMITH_{name.upper()}") or shutil.which(name)
    if chosen:
        return Path(chosen)
    module = next(module for module in build.MODULES if name in module.commands)
    build.ensure(paths, [module], reporter)
    return build.binary(paths.cache, name)
