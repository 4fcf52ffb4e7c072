"""What the agent tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tunesmith.serving.contract import AgentStatus


class Metrics:
    """One agent's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.adapters = Gauge(
            "tunesmith_agent_adapters", "Adapters wanted in this pod, by state.", ["state"], registry=self.registry
        )
        self.served = Gauge(
            "tunesmith_agent_adapter_served",
            "Whether the engine serves the wanted version of an adapter.",
            ["adapter"],
            registry=self.registry,
        )
        self.load_seconds = Histogram(
            "tunesmith_agent_load_seconds",
            "Time that the engine took to load an adapter.",
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
            registry=self.registry,
        )
        self.prepare_seconds = Histogram(
            "tunesmith_agent_prepare_seconds",
            "Time to fetch or copy an adapter and to check it.",
            buckets=(0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900),
            registry=self.registry,
        )
        self.failures = Counter(
            "tunesmith_agent_failures_total",
            "Attempts to prepare or load an adapter that failed.",
            registry=self.registry,
        )
        self.drift_repaired = Counter(
            "tunesmith_agent_drift_repaired_total",
            "Adapters that had been served, were gone from the engine, and were loaded again.",
            registry=self.registry,
        )
        self.engine_up = Gauge("tunesmith_agent_engine_up", "Whether the engine answers.", registry=self.registry)
        self.revision = Gauge(
            "tunesmith_agent_state_revision", "Revision of the desired state.", registry=self.registry
        )

    def show(self, status: AgentStatus) -> None:
        """Set what follows from a status."""
        self.revision.set(status.revision)
        states = [adapter.state for adapter in status.adapters]
        for state in ("Loading", "Ready", "Failed"):
            self.adapters.labels(state).set(states.count(state))
        self.served.clear()
        for adapter in status.adapters:
            self.served.labels(adapter.name).set(adapter.state == "Ready")
