"""Kueue's resources, and Jobs as the operator makes them: Indexed, without retries, one live pod per index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from integration.harness import Kubectl, eventually
from tunesmith_cluster.images import HOST_IMAGE

KUEUE = "kueue.x-k8s.io/v1beta2"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"


def resource_flavor(name: str) -> dict[str, Any]:
    return {"apiVersion": KUEUE, "kind": "ResourceFlavor", "metadata": {"name": name}}


def cluster_queue(name: str, namespace: str, quotas: Mapping[str, str]) -> dict[str, Any]:
    resources = [{"name": resource, "nominalQuota": quota} for resource, quota in quotas.items()]
    spec = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "preemption": {"withinClusterQueue": "LowerPriority"},
        "resourceGroups": [
            {"coveredResources": list(quotas), "flavors": [{"name": name, "resources": resources}]},
        ],
    }
    return {"apiVersion": KUEUE, "kind": "ClusterQueue", "metadata": {"name": name}, "spec": spec}


def local_queue(name: str, queue: str) -> dict[str, Any]:
    spec = {"clusterQueue": queue}
    return {"apiVersion": KUEUE, "kind": "LocalQueue", "metadata": {"name": name}, "spec": spec}


def priority_class(name: str, value: int) -> dict[str, Any]:
    return {"apiVersion": KUEUE, "kind": "WorkloadPriorityClass", "metadata": {"name": name}, "value": value}


def headless(name: str) -> dict[str, Any]:
    """The Service by which the pods of a Job find each other."""
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"job-name": name}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def job(
    name: str,
    script: str,
    *,
    pods: int = 1,
    cpu: str = "100m",
    labels: Mapping[str, str] | None = None,
    image: str = HOST_IMAGE,
    **pod: Any,
) -> dict[str, Any]:
    """A Job of `pods` pods that run a shell script in the store; suspended if its labels name a queue."""
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "Never",
        "command": ["sh", "-c", script],
        "workingDir": "/store",
        "resources": {"requests": {"cpu": cpu}},
        "volumeMounts": [{"name": "store", "mountPath": "/store"}],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    template = {
        "restartPolicy": "Never",
        "subdomain": name,
        "containers": [container],
        "volumes": [{"name": "store", "persistentVolumeClaim": {"claimName": "tunesmith-store"}}],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **pod,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": dict(labels or {})},
        "spec": {
            "suspend": QUEUE_LABEL in (labels or {}),
            "completionMode": "Indexed",
            "completions": pods,
            "parallelism": pods,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "template": {"spec": template},
        },
    }


def one_per_node(name: str) -> dict[str, Any]:
    """The part of a pod that keeps it off the nodes where the Job has one."""
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"job-name": name}}}
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def pods_of(kubectl: Kubectl, name: str) -> list[dict[str, Any]]:
    return [pod for pod in kubectl.list("pod") if pod["metadata"]["labels"].get("job-name") == name]


def workload_of(kubectl: Kubectl, name: str) -> dict[str, Any]:
    """The Workload that Kueue made for a Job: it has the Job's UID as a label."""
    uid = kubectl.get("job", name)["metadata"]["uid"]

    def find() -> dict[str, Any] | None:
        workloads = kubectl.list("workloads.kueue.x-k8s.io")
        return next((each for each in workloads if each["metadata"]["labels"]["kueue.x-k8s.io/job-uid"] == uid), None)

    found: dict[str, Any] = eventually(find, lambda: f"no Workload of Job {name} appeared")
    return found


def conditions(resource: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Each condition's type -> its status and reason."""
    found = resource.get("status", {}).get("conditions", [])
    return {each["type"]: (each["status"], each.get("reason", "")) for each in found}
