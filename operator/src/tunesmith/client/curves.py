"""Loss curves, put together from the logs of all attempts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape

from tunesmith.training.logline import LogLine

WIDTH, HEIGHT, MARGIN = 560, 180, 44
COLOURS = ("#3b6fb6", "#c1592d", "#3d8b4f", "#8a4fa3", "#a3862b", "#4a9aa0")


@dataclass
class Curve:
    """What one job logged, by step. A step that came again after a resume counts as it was the last time."""

    name: str
    points: dict[int, LogLine] = field(default_factory=dict)
    """In the order of their steps."""

    def add(self, line: LogLine) -> bool:
        """One more line. Later steps of an attempt before this one were lost, and go. False: it was known."""
        if self.points.get(line.step) == line:
            return False
        while self.points and next(reversed(self.points)) >= line.step:
            self.points.popitem()
        self.points[line.step] = line
        return True

    def series(self, metric: str = "loss") -> tuple[list[int], list[float]]:
        """Steps and values of the loss, the learning rate, or a metric of the method."""
        found = [(step, value(line, metric)) for step, line in sorted(self.points.items())]
        kept = [(step, one) for step, one in found if one is not None]
        return [step for step, _ in kept], [one for _, one in kept]

    def metrics(self) -> list[str]:
        """Names that `series` takes."""
        more = {name for line in self.points.values() for name in line.metrics}
        return ["loss", "learning_rate", "tokens_per_second", *sorted(more)]

    def _repr_html_(self) -> str:
        return svg([self])


def value(line: LogLine, metric: str) -> float | None:
    """The number of this name in a line."""
    own = {"loss": line.loss, "learning_rate": line.learning_rate, "tokens_per_second": line.tokens_per_second}
    return own[metric] if metric in own else line.metrics.get(metric)


def svg(curves: Iterable[Curve], metric: str = "loss") -> str:
    """The curves as a picture for a notebook, with axes and a legend; nothing where there are no points."""
    drawn = [(curve.name, *curve.series(metric)) for curve in curves]
    drawn = [one for one in drawn if one[1]]
    if not drawn:
        return ""
    steps = [step for _, xs, _ in drawn for step in xs]
    values = [one for _, _, ys in drawn for one in ys]
    left, right, low, high = min(steps), max(steps), min(values), max(values)
    wide, tall = (right - left) or 1, (high - low) or 1.0

    def place(step: int, one: float) -> str:
        x = MARGIN + (step - left) / wide * (WIDTH - MARGIN - 10)
        return f"{x:.1f},{10 + (high - one) / tall * (HEIGHT - 40):.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" role="img" '
        f'aria-label="{escape(metric)} by step" style="font:11px sans-serif">',
        f'<path d="M{MARGIN},8 V{HEIGHT - 28} H{WIDTH - 8}" fill="none" stroke="currentColor" opacity="0.4"/>',
        f'<text x="{MARGIN - 4}" y="16" text-anchor="end" fill="currentColor">{high:.4g}</text>',
        f'<text x="{MARGIN - 4}" y="{HEIGHT - 30}" text-anchor="end" fill="currentColor">{low:.4g}</text>',
        f'<text x="{MARGIN}" y="{HEIGHT - 14}" fill="currentColor">step {left}</text>',
        f'<text x="{WIDTH - 10}" y="{HEIGHT - 14}" text-anchor="end" fill="currentColor">{right}</text>',
    ]
    for number, (name, xs, ys) in enumerate(drawn):
        colour, points = COLOURS[number % len(COLOURS)], " ".join(map(place, xs, ys))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        x, y = MARGIN + 80 + 130 * (number % 3), HEIGHT - 14 + 12 * (number // 3)
        parts.append(f'<text x="{x}" y="{y}" fill="{colour}">{escape(name)}</text>')
    return "".join([*parts, "</svg>"])
