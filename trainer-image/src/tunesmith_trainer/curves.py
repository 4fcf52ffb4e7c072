"""Curves of a run, as PNG images."""

from __future__ import annotations

import json
from pathlib import Path

CURVES = {"loss": "Training loss", "learning_rate": "Learning rate", "grad_norm": "Gradient norm"}


def draw(log: Path, folder: Path) -> list[Path]:
    """Draw a curve over the steps for each quantity of `logging.jsonl` into `<folder>/<name>.png`."""
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, title in CURVES.items():
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        if not points:
            continue
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        axes.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else None)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=100)
        written.append(path)
    return written
