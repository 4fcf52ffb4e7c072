"""Fine-tunes and merges language models as a plan says: in a pod, or by `run` on the machine at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith_trainer.local.running import Outcome, run

__all__ = ["Outcome", "run"]


def __getattr__(name: str) -> Any:
    """What is only needed outside of pods is imported on first use."""
    if name not in __all__:
        raise AttributeError(name)
    from tunesmith_trainer.local import running

    return getattr(running, name)
