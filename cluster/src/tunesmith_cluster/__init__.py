"""A real Kubernetes without Docker, for tunesmith's quickstart and tests.

Names are loaded when they are asked for: `python -m` warns of a module that is loaded before it is run.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith_cluster.cluster import Cluster, ProcessStatus, Status
    from tunesmith_cluster.errors import ClusterError
    from tunesmith_cluster.paths import Paths

__all__ = ["Cluster", "ClusterError", "Paths", "ProcessStatus", "Status"]

_MODULES = {"ClusterError": "errors", "Paths": "paths"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'cluster')}"), name)
