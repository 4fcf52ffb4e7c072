"""What rank 0 serves: its progress, for the operator and for Prometheus."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from tunesmith.reporting import ReportServer
from tunesmith.training.report import PORT as DEFAULT_PORT
from tunesmith.training.report import Report

PORT = int(os.environ.get("TUNESMITH_PROGRESS_PORT", DEFAULT_PORT))
GAUGES = {
    "step": "Optimizer steps done.",
    "total_steps": "Optimizer steps in all.",
    "resumed_step": "Step of the checkpoint that it began from; 0: from the start.",
    "checkpoint_step": "Step of its newest whole checkpoint.",
    "step_seconds": "Usual (median) time of one step.",
    "idle_seconds": "Time since the last step ended, or since the training began.",
    "loss": "Training loss of the newest log line.",
    "learning_rate": "Learning rate of the newest log line.",
    "tokens_per_second": "Tokens trained per second, over all processes.",
    "mfu": "Part of the GPUs' peak that the model's own arithmetic is, by estimate, 0 to 1. Absent on CPU.",
    "eta_seconds": "Seconds to the end, by the speed so far.",
    "peak_memory_bytes": "Largest memory of rank 0: of its GPU where it has one, else of the process.",
}


class Server(ReportServer):
    """Beside `/progress` also `/metrics`, for Prometheus."""

    def __init__(self, port: int, report: Callable[[], Report]) -> None:
        self.registry = CollectorRegistry()
        super().__init__(port, report)
        self.registry.register(self)  # type: ignore[arg-type]

    def page(self, path: str) -> tuple[str, bytes] | None:
        """One more page than the report's."""
        if path == "/metrics":
            return CONTENT_TYPE_LATEST, generate_latest(self.registry)
        return super().page(path)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The report as Prometheus metrics."""
        report = self.report()
        for name, text in GAUGES.items():
            value = getattr(report, name)
            if value is not None:
                yield GaugeMetricFamily(f"tunesmith_training_{name}", text, value=value)
