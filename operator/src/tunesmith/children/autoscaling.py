"""The autoscaler of a ModelDeployment. It writes the number of pods into the ModelDeployment itself, through /scale, so
that nobody else has to, and the operator never writes against it.
"""

from __future__ import annotations

from tunesmith.api.base import API_VERSION
from tunesmith.api.modeldeployment import Autoscaling
from tunesmith.children.meta import Object, Owner

WAITING, CACHE = "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"
HELD = "tunesmith_gateway_held_requests"
KINDS = {"HPA": "HorizontalPodAutoscaler", "KEDA": "ScaledObject"}


def autoscaler(owner: Owner, wanted: Autoscaling, *, gateway: bool = False) -> Object:
    """A HorizontalPodAutoscaler or a KEDA ScaledObject."""
    return _hpa(owner, wanted) if wanted.scaler == "HPA" else _scaled_object(owner, wanted, gateway=gateway)


def _target(owner: Owner) -> Object:
    return {"apiVersion": API_VERSION, "kind": owner.kind, "name": owner.name}


def _behaviour(wanted: Autoscaling) -> Object:
    return {"scaleDown": {"stabilizationWindowSeconds": wanted.scale_down_seconds}}


def _hpa(owner: Owner, wanted: Autoscaling) -> Object:
    # As millis where it is a part of one, which is how quantities say that.
    targets = {
        WAITING: str(wanted.queue_length) if wanted.queue_length else None,
        CACHE: f"{wanted.cache_usage_percent * 10}m" if wanted.cache_usage_percent else None,
    }
    metrics = [
        {"type": "Pods", "pods": {"metric": {"name": name}, "target": {"type": "AverageValue", "averageValue": value}}}
        for name, value in targets.items()
        if value
    ]
    return {
        **owner.child("autoscaling/v2", KINDS["HPA"], owner.name),
        "spec": {
            "scaleTargetRef": _target(owner),
            "minReplicas": wanted.min_replicas,
            "maxReplicas": wanted.max_replicas,
            "metrics": metrics,
            "behavior": _behaviour(wanted),
        },
    }


def _scaled_object(owner: Owner, wanted: Autoscaling, *, gateway: bool) -> Object:
    pods = f'namespace="{owner.namespace}",pod=~"{owner.name}-engine-.+"'
    waiting = f"sum({WAITING}{{{pods}}})"
    if gateway:  # where no engine is left, its gateways hold what waits for one
        gateways = f'namespace="{owner.namespace}",pod=~"{owner.name}-gateway-.+"'
        waiting = f"({waiting} or vector(0)) + (sum({HELD}{{{gateways}}}) or vector(0))"
    # Sums, which KEDA divides by the number of pods.
    queries = {
        waiting: wanted.queue_length,
        f"100 * sum({CACHE}{{{pods}}})": wanted.cache_usage_percent,
    }
    triggers = [
        {
            "type": "prometheus",
            "metricType": "AverageValue",
            "metadata": {"serverAddress": wanted.prometheus, "query": query, "threshold": str(value)},
        }
        for query, value in queries.items()
        if value
    ]
    return {
        **owner.child("keda.sh/v1alpha1", KINDS["KEDA"], owner.name),
        "spec": {
            "scaleTargetRef": _target(owner),
            "minReplicaCount": wanted.min_replicas,
            "maxReplicaCount": wanted.max_replicas,
            "cooldownPeriod": wanted.scale_down_seconds,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behaviour(wanted)}},
            "triggers": triggers,
        },
    }
