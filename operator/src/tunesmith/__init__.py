"""tunesmith: fine-tune, merge and serve language models on Kubernetes.

`from tunesmith import Client, FineTuneJob`: the names of tunesmith.client are loaded when they are asked for, since
the operator, the agent and the trainer do without.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.client import *  # noqa: F403

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    client = import_module("tunesmith.client")
    if name not in client.__all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(client, name)
