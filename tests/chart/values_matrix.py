"""Values under which the chart must render: every template's branch is taken at least once."""

from __future__ import annotations

from typing import Any

DIGEST = "sha256:" + "0123456789abcdef" * 4

MATRIX: dict[str, dict[str, Any]] = {
    "defaults": {},
    "two-replicas": {"replicas": 2},
    "two-replicas-own-affinity": {
        "replicas": 2,
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]
                }
            }
        },
        "podDisruptionBudget": {"enabled": False},
    },
    "namespaces": {"watchNamespaces": ["team-a", "team-b", "team-a"]},
    "own-account": {"serviceAccount": {"create": False, "name": "mine"}, "rbac": {"create": False}},
    "default-account": {"serviceAccount": {"create": False}},
    "annotated-account": {"serviceAccount": {"annotations": {"iam.example.com/role": "r"}}},
    "no-aggregation": {"rbac": {"aggregateToDefaultRoles": False}},
    "mirror": {
        "imageRegistry": "registry.example.com:5000/mirror/",
        "operatorImage": {"tag": "1.2.3", "digest": DIGEST},
        "imagePullPolicy": "Always",
        "imagePullSecrets": [{"name": "regcred"}],
    },
    "no-crds-no-metrics": {"crds": {"enabled": False}, "metrics": {"service": {"enabled": False}}},
    "metrics": {"metrics": {"service": {"port": 80, "annotations": {"prometheus.io/scrape": "true"}}}},
    "monitored": {
        "metrics": {
            "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "podMonitor": {"enabled": True, "interval": "15s", "labels": {"release": "prometheus"}},
            "rules": {"enabled": True, "labels": {"release": "prometheus"}},
            "dashboards": {"enabled": True},
        },
    },
    "monitored-namespaces": {"watchNamespaces": ["team-a"], "metrics": {"podMonitor": {"enabled": True}}},
    "scheduling": {
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoSchedule"}],
        "priorityClassName": "system-cluster-critical",
        "resources": {"requests": {"cpu": 1}, "limits": {"cpu": "2", "memory": "1Gi"}},
        "terminationGracePeriodSeconds": 5,
    },
    "settings": {
        "workers": 1,
        "logLevel": "debug",
        "defaultStore": "pvc://store/team/a",
        "extraEnv": [
            {"name": "TUNESMITH_POLL_SECONDS", "value": "10"},
            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        ],
    },
    "volcano": {"gangScheduler": "Volcano", "prices": {"nvidia.com/gpu": 2.5, "cpu": 0.01}},
    "coscheduling-no-nodes": {"gangScheduler": "Coscheduling", "rbac": {"nodes": False}},
    "names": {"nameOverride": "tuner", "fullnameOverride": "llm-tuner"},
    "network-policies": {
        "watchNamespaces": ["team-a", "team-b"],
        "networkPolicy": {
            "enabled": True,
            "metricsFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
            "servingFrom": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}],
            "apiServerPorts": [6443],
        },
    },
    "network-policies-cluster-wide": {"networkPolicy": {"enabled": True, "namespaces": ["team-a"]}},
    "private-registry": {"pods": {"imagePullSecrets": ["regcred", "mirror"]}},
    "labels-that-meet": {
        "commonLabels": {"team": "platform"},
        "podLabels": {"team": "models"},
        "metrics": {"serviceMonitor": {"enabled": True, "labels": {"team": "watchers"}}},
    },
    "spread": {
        "replicas": 2,
        "commonLabels": {"team": "platform"},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
    },
    "openai-api": {
        "pods": {"imagePullSecrets": ["regcred"]},
        "networkPolicy": {"enabled": True, "servingFrom": [{"podSelector": {}}]},
        "openaiApi": {
            "enabled": True,
            "namespaces": ["team-a", "team-b"],
            "models": {"small": {"uri": "hf://org/small", "secret": "hub", "spec": {"tuner": {"rank": 4}, "nodes": 2}}},
        },
    },
    "console": {
        "imagePullSecrets": [{"name": "regcred"}],
        "networkPolicy": {
            "enabled": True,
            "consoleFrom": [{"namespaceSelector": {"matchLabels": {"role": "ingress"}}}],
        },
        "console": {"enabled": True, "replicas": 2},
        "defaultStore": "pvc://team-store",
    },
    "marked-pods": {"podLabels": {"team": "a"}, "podAnnotations": {"note": "b"}},
    "subchart": {"global": {"imageRegistry": "other"}},
}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown value": ({"replica": 1}, "replica"),
    "unknown value inside": ({"operatorImage": {"name": "x"}}, "name"),
    "too many replicas": ({"replicas": 3}, "replicas"),
    "text for a number": ({"workers": "many"}, "workers"),
    "a log level that there is not": ({"logLevel": "loud"}, "logLevel"),
    "one namespace as text": ({"watchNamespaces": "team-a"}, "watchNamespaces"),
    "not a namespace": ({"watchNamespaces": ["Team_A"]}, "watchNamespaces"),
    "a store that is no claim": ({"defaultStore": "s3://bucket/path"}, "defaultStore"),
    "half a digest": ({"trainerImage": {"digest": "sha256:12"}}, "digest"),
    "a pull secret as an object": ({"pods": {"imagePullSecrets": [{"name": "x"}]}}, "imagePullSecrets"),
    "an API nowhere": ({"openaiApi": {"enabled": True}}, "openaiApi.namespaces"),
    "a model without an address": ({"openaiApi": {"models": {"x": {}}}}, "uri"),
    "what each request decides": (
        {"openaiApi": {"models": {"x": {"uri": "hf://a/b", "spec": {"method": {}}}}}},
        "method",
    ),
    "a console of no pod": ({"console": {"enabled": True, "replicas": 0}}, "replicas"),
    "a peer that is none": ({"networkPolicy": {"metricsFrom": [{}]}}, "metricsFrom"),
    "a misspelt affinity": ({"affinity": {"nodeAffinity": {"required": {}}}}, "nodeAffinity"),
    "a key reference without a key": (
        {"extraEnv": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s"}}}]},
        "key",
    ),
    "a label that selects the operator's pods": ({"podLabels": {"app.kubernetes.io/component": "x"}}, "io/component"),
    "a label of the chart's own": ({"commonLabels": {"app.kubernetes.io/name": "x"}}, "io/name"),
    "an engine of the chart's version": ({"engineImage": {"tag": ""}}, "engineImage"),
    "a monitor of no Service": (
        {"metrics": {"service": {"enabled": False}, "serviceMonitor": {"enabled": True}}},
        "metrics.service.enabled",
    ),
    "a variable that the chart sets": ({"extraEnv": [{"name": "TUNESMITH_NAMESPACE", "value": "x"}]}, "extraEnv"),
}
