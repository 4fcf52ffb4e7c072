"""tunesmith: fine-tune, merge and serve language models on Kubernetes.

`from tunesmith import Client, FineTuneJob`: the client's names are loaded when they are asked for, since the operator,
the agent and the trainer do without.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.client import *  # noqa: F403

__version__ = "0.1.0"

CLIENT = frozenset(
    {
        "AsyncClient", "Client", "Conflict", "Curve", "FineTuneJob", "Forbidden", "Invalid", "JobFailed", "LogEntry",
        "InferenceJob", "MergeJob", "ModelDeployment", "NoCluster", "NotFound", "NotInstalled", "NotServed", "Refused",
        "TunesmithError", "Unreadable", "WaitTimeout",
    }
)  # fmt: skip
"""Names of tunesmith.client."""


def __getattr__(name: str) -> Any:
    if name not in CLIENT:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("tunesmith.client"), name)
