"""Curves of a run, as PNG images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CURVES = {"loss": "Training loss", "learning_rate": "Learning rate", "grad_norm": "Gradient norm"}


def draw(run: Path) -> list[Path]:
    """Draw a curve over the steps for each quantity of a run's `logging.jsonl`, and for each metric of its
    `evaluation.jsonl`, into `<run>/images/<name>.png`.
    """
    from matplotlib.figure import Figure

    lines, evaluations = read(run / "logging.jsonl"), read(run / "evaluation.jsonl")
    curves = {name: (title, [(line["step"], line.get(name)) for line in lines]) for name, title in CURVES.items()}
    for name in {name: None for line in evaluations for name in line["metrics"]}:
        points = [(line["step"], line["metrics"].get(name)) for line in evaluations]
        curves[f"eval_{name.replace('/', '_')}"] = (f"Evaluation: {name}", points)
    folder = run / "images"
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, (title, found) in curves.items():
        points = [(step, value) for step, value in found if value is not None]
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


def read(log: Path) -> list[dict[str, Any]]:
    """The lines of a log; none where it was not written."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
