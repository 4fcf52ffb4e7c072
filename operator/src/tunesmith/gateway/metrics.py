"""What a gateway tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """One gateway's metrics, in a registry of their own. Labels are names from the spec, never a client's."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tunesmith_gateway_requests_total",
            "Requests that are over, by model, version (stable or canary) and the answer's code (0: cut short).",
            ["model", "version", "code"],
            registry=self.registry,
        )
        self.first_byte_seconds = Histogram(
            "tunesmith_gateway_first_byte_seconds",
            "Time from a request's arrival to the first byte of its answer, waiting included.",
            ["version"],
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
            registry=self.registry,
        )
        self.held = Gauge("tunesmith_gateway_held_requests", "Requests that wait for a pod.", registry=self.registry)
        self.in_flight = Gauge(
            "tunesmith_gateway_requests_in_flight", "Requests that are being answered.", registry=self.registry
        )
        self.refused = Counter(
            "tunesmith_gateway_refused_total",
            "Requests that were answered with 503: too many waited, or no pod came in time.",
            registry=self.registry,
        )
        self.pods = Gauge("tunesmith_gateway_pods", "Engines that answer.", registry=self.registry)
