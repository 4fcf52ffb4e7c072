"""The line that a trainer prints of its progress, and how others read it again."""

from __future__ import annotations

import json
import math
import re

from tunesmith.api.base import Model
from tunesmith.training.report import duration


class LogLine(Model):
    """Where a training is at one step. A line of logging.jsonl has these fields and more."""

    step: int
    total_steps: int
    loss: float
    learning_rate: float
    tokens_per_second: float = 0
    mfu: float | None = None
    """Part of the GPUs' peak, 0 to 1; None on CPU."""
    peak_memory_bytes: int = 0
    eta_seconds: int = 0
    metrics: dict[str, float] = {}
    """What the method measures beside the loss, for example rewards/margins."""

    def text(self) -> str:
        """For the trainer's log."""
        more = f"  {json.dumps(self.metrics)}" if self.metrics else ""
        used = "" if self.mfu is None else f"mfu {100 * self.mfu:.1f}%  "
        return (
            f"step {self.step}/{self.total_steps}  loss {self.loss:.6g}  lr {self.learning_rate:.3e}  "
            f"{self.tokens_per_second:.0f} tokens/s  {used}peak {self.peak_memory_bytes / 2**30:.2f} GiB  "
            f"eta {duration(self.eta_seconds)}{more}"
        )


LINE = re.compile(
    r"step (?P<step>\d+)/(?P<total>\d+)  loss (?P<loss>\S+)  lr (?P<lr>\S+)  (?P<speed>[\d.]+) tokens/s  "
    r"(?:mfu (?P<mfu>[\d.]+)%  )?peak (?P<peak>[\d.]+) GiB  eta (?P<eta>[\dsmhd]+)(?:  (?P<metrics>\{.*\}))?$"
)
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse(text: str) -> LogLine | None:
    """The progress in a line of a log, if it is one that says it. To the digits that were printed."""
    found = LINE.search(text.rstrip())
    if found is None:
        return None
    try:
        line = LogLine(
            step=int(found["step"]),
            total_steps=int(found["total"]),
            loss=float(found["loss"]),
            learning_rate=float(found["lr"]),
            tokens_per_second=float(found["speed"]),
            mfu=round(float(found["mfu"]) / 100, 3) if found["mfu"] else None,
            peak_memory_bytes=int(float(found["peak"]) * 2**30),
            eta_seconds=sum(int(number) * UNITS[unit] for number, unit in re.findall(r"(\d+)([smhd])", found["eta"])),
            metrics=json.loads(found["metrics"] or "{}"),
        )
    except ValueError:
        return None
    if not math.isfinite(line.loss):
        return None
    return line.model_copy(update={"metrics": {key: one for key, one in line.metrics.items() if math.isfinite(one)}})
