"""helm and kubectl: the user's own, or those that the local cluster builds."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tunesmith_cluster import build, golang
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.progress import Reporter


def find(name: str, paths: Paths, reporter: Reporter) -> Path:
    """TUNESMITH_HELM (or _KUBECTL), the one on PATH, or the one in the cache, which is built if missing."""
    chosen = os.environ.get(f"TUNESMITH_{name.upper()}") or shutil.which(name)
    if chosen:
        return Path(chosen)
    module = next(module for module in build.MODULES if name in module.commands)
    if not build.is_built(paths.cache, module):
        go = golang.ensure(paths, reporter)
        with reporter.step(f"build {', '.join(module.commands)}", module.usual_seconds):
            build.build(paths.cache, module, go)
    return build.binary(paths.cache, name)
