"""What rank 0 serves: its progress, for the operator and for Prometheus."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from tunesmith.training.report import PORT as DEFAULT_PORT
from tunesmith.training.report import Report

PORT = int(os.environ.get("TUNESMITH_PROGRESS_PORT", DEFAULT_PORT))
POLL_SECONDS = 0.05
"""How long closing the server may take."""
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
    "eta_seconds": "Seconds to the end, by the speed so far.",
    "peak_memory_bytes": "Largest memory of rank 0: of its GPU where it has one, else of the process.",
}


class Server(ThreadingHTTPServer):
    """Serves `/progress` (Report as JSON) and `/metrics` (Prometheus) from a thread, on IPv4 and IPv6. `report` is
    asked at each request.
    """

    daemon_threads = True
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def __init__(self, port: int, report: Callable[[], Report]) -> None:
        self.report = report
        self.registry = CollectorRegistry()
        self.registry.register(self)  # type: ignore[arg-type]
        super().__init__(("", port), Handler)
        Thread(target=self.serve_forever, args=(POLL_SECONDS,), name="progress", daemon=True).start()

    def server_bind(self) -> None:
        """Bind for both families."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The report as Prometheus metrics."""
        report = self.report()
        for name, text in GAUGES.items():
            value = getattr(report, name)
            if value is not None:
                yield GaugeMetricFamily(f"tunesmith_training_{name}", text, value=value)

    def close(self) -> None:
        """Stop serving."""
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    server: Server

    def do_GET(self) -> None:
        """Serve the two paths."""
        match self.path.split("?")[0]:
            case "/progress":
                kind, body = "application/json", self.server.report().model_dump_json(by_alias=True).encode()
            case "/metrics":
                kind, body = CONTENT_TYPE_LATEST, generate_latest(self.server.registry)
            case _:
                return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        return None

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing of requests."""
