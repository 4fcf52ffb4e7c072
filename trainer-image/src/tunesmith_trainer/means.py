"""Means over tokens, rows or answers of what TRL measures, whichever of them make a micro-batch.

TRL keeps a mean of each micro-batch, over all processes, and logs the mean of these. Here each counts by how many it is
the mean of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

Metrics = dict[str, list[float]]
"""As TRL keeps them: name -> the mean of each micro-batch since the last log line."""
Count = torch.Tensor | float
"""Of how many: of this process's part as a tensor, which waits for no device; a number holds for all processes."""


class Means:
    """How much each of TRL's means counts."""

    def __init__(self) -> None:
        self.counts: dict[str, list[Count]] = {}

    def note(self, metrics: Metrics, counts: Mapping[str, Count], rows: float) -> None:
        """After a micro-batch: of how many the new values are the means, which is `rows` unless `counts` says it."""
        for name, values in metrics.items():
            known = self.counts.setdefault(name, [])
            known += [counts.get(name, rows)] * (len(values) - len(known))

    def settle(self, metrics: Metrics, total: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Before a log line: leave of each metric its mean. `total` sums over the processes. A metric with a value that
        is no number is left to TRL.
        """
        self.note(metrics, {}, 1.0)
        parts = [one for counts in self.counts.values() for one in counts if isinstance(one, torch.Tensor)]
        totals = iter(total(torch.stack(parts).double()).tolist() if parts else ())
        for name, counts in self.counts.items():
            summed = [next(totals) if isinstance(one, torch.Tensor) else one for one in counts]
            values = metrics[name]
            if sum(summed) and not any(map(math.isnan, values)):
                metrics[name] = [sum(v * n for v, n in zip(values, summed, strict=True)) / sum(summed)]
        self.counts = {}
