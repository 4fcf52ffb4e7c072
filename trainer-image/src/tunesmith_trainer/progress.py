"""How far the training is: lines in logging.jsonl, on stdout, and live over HTTP."""

from __future__ import annotations

import json
import math
import resource
import socket
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from tunesmith.training.report import Report

from tunesmith_trainer.errors import ConfigError

GAUGES = {
    "step": "Optimizer steps done.",
    "total_steps": "Optimizer steps in all.",
    "loss": "Training loss of the newest log line.",
    "learning_rate": "Learning rate of the newest log line.",
    "tokens_per_second": "Tokens trained per second, over all processes.",
    "eta_seconds": "Seconds to the end, by the speed so far.",
    "peak_memory_bytes": "Largest memory of rank 0: of its GPU where it has one, else of the process.",
}


def peak_memory() -> int:
    """Bytes that this process held at most: on its GPU where it has one, else resident in memory (getrusage(2))."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def duration(seconds: float) -> str:
    """For people: 3m20s."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


class Server(ThreadingHTTPServer):
    """Serves `/progress` (Report as JSON) and `/metrics` (Prometheus) from a thread, on IPv4 and IPv6."""

    daemon_threads = True
    report: Report
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

    def __init__(self, port: int, report: Report) -> None:
        self.report = report
        self.registry = CollectorRegistry()
        self.registry.register(self)  # type: ignore[arg-type]
        super().__init__(("", port), Handler)
        Thread(target=self.serve_forever, name="progress", daemon=True).start()

    def server_bind(self) -> None:
        """Bind for both families."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The report as Prometheus metrics."""
        for name, text in GAUGES.items():
            value = getattr(self.report, name)
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
                kind, body = "application/json", self.server.report.model_dump_json(by_alias=True).encode()
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


class Reporter(TrainerCallback):
    """Follows the training on every process; rank 0 writes and serves."""

    def __init__(self, log: Path, port: int) -> None:
        self.log, self.port = log, port
        self.server: Server | None = None
        self.report = Report(step=0, total_steps=0)
        self.began = self.window = 0.0
        self.first_step = 0
        self.tokens = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start to serve. Lines of steps that come again after a resume are taken out of the log."""
        self.began = self.window = time.monotonic()
        self.first_step = state.global_step
        self.report = Report(step=state.global_step, total_steps=state.max_steps)
        if not state.is_world_process_zero:
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        old = self.log.read_text().splitlines() if self.log.exists() else []
        kept = [line for line in old if line.endswith("}") and json.loads(line)["step"] <= state.global_step]
        self.log.write_text("".join(f"{line}\n" for line in kept))
        try:
            self.server = Server(self.port, self.report)
        except OSError as error:
            print(f"progress is not served: port {self.port}: {error.strerror}")

    def update(self, **values: Any) -> None:
        """Publish new values."""
        self.report = self.report.model_copy(update={**values, "peak_memory_bytes": peak_memory()})
        if self.server:
            self.server.report = self.report

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """One step further. The last step is always logged."""
        speed = (time.monotonic() - self.began) / max(1, state.global_step - self.first_step)
        self.update(step=state.global_step, eta_seconds=round(speed * (state.max_steps - state.global_step)))
        if state.global_step >= state.max_steps:
            control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """One log line. A loss that is no number ends the training: nothing good can follow."""
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise ConfigError(
                f"the loss is {logs['loss']} at step {state.global_step}: the training diverged. Lower "
                "spec.training.learningRate, raise warmupRatio, or set dtype Float32"
            )
        now = time.monotonic()
        tokens, speed = logs["num_tokens"], (logs["num_tokens"] - self.tokens) / (now - self.window)
        self.tokens, self.window = tokens, now
        self.update(loss=logs["loss"], learning_rate=logs["learning_rate"], tokens_per_second=round(speed, 1))
        if not state.is_world_process_zero:
            return
        norm = float(logs.get("grad_norm", math.nan))
        line = {
            "step": state.global_step,
            "total_steps": state.max_steps,
            "epoch": logs.get("epoch", state.epoch),
            "loss": logs["loss"],
            "grad_norm": norm if math.isfinite(norm) else None,
            "learning_rate": logs["learning_rate"],
            "tokens_per_second": self.report.tokens_per_second,
            "peak_memory_bytes": self.report.peak_memory_bytes,
            "elapsed_seconds": round(now - self.began, 2),
            "eta_seconds": self.report.eta_seconds,
        }
        with self.log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(
            f"step {state.global_step}/{state.max_steps}  loss {logs['loss']:.4f}  lr {logs['learning_rate']:.2e}  "
            f"{speed:.0f} tokens/s  peak {(self.report.peak_memory_bytes or 0) / 2**30:.2f} GiB  "
            f"eta {duration(self.report.eta_seconds or 0)}",
            flush=True,
        )

    def close(self) -> None:
        """Stop serving."""
        if self.server:
            self.server.close()
            self.server = None
