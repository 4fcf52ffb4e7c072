"""LeaderWorkerSet, which makes pods of a leader and its workers, group by group."""

from __future__ import annotations

from tunesmith_cluster import build
from tunesmith_cluster.managers import LOOPBACK, Manager

_WEBHOOK_PORT = 9447

LWS = Manager(
    name="lws",
    title="LeaderWorkerSet",
    module=build.LWS,
    chart=build.LWS_CHART,
    namespace="lws-system",
    webhook_port=_WEBHOOK_PORT,
    metrics_port=9448,
    health_port=9449,
    # /readyz answers before there are webhooks. They answer a GET with 200, too, and this is the last of them.
    ready=f"https://{LOOPBACK}:{_WEBHOOK_PORT}/validate--v1-pod",
    settings={"apiVersion": "config.lws.x-k8s.io/v1alpha1", "kind": "Configuration"},
)
