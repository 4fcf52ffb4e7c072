"""The operator's own metrics, served at :9090/metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

RECONCILES = Counter("tunesmith_reconciles_total", "Passes over a resource.", ["kind", "result"])
RECONCILE_SECONDS = Histogram("tunesmith_reconcile_seconds", "Duration of a pass.", ["kind"])
QUEUE_DEPTH = Gauge("tunesmith_queue_depth", "Resources that are due and wait for a worker.")
QUEUE_OLDEST = Gauge("tunesmith_queue_oldest_seconds", "How long the one that waits longest has been due.")
LEADER = Gauge("tunesmith_leader", "1 while this replica leads.")
