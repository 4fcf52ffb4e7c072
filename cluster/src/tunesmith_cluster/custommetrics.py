"""prometheus-adapter, for as long as a test needs it: it serves Prometheus's series to HorizontalPodAutoscalers.

A process of this machine, which the API server passes requests on to, as it does in a cluster:
https://kubernetes.io/docs/tasks/extend-kubernetes/configure-aggregation-layer/
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tunesmith_cluster import addons, build, credentials, network
from tunesmith_cluster.certificates import KeyPair, Subject, ensure_signed
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.probes import answers
from tunesmith_cluster.progress import Reporter
from tunesmith_cluster.transient import running

NAME = "prometheus-adapter"
NAMESPACE = "custom-metrics"
APISERVICE = "v1beta1.custom.metrics.k8s.io"
_PORT = 9446
_WAIT_SECONDS = 60
_HINT = "\nIf it misses the requestheader CA: an older checkout started the cluster; `make down`, once"
_RELIST = "5s"
"""How often it looks which series there are."""


@contextmanager
def serving(paths: Paths, folder: Path, prometheus: str, rules: Sequence[Mapping[str, Any]]) -> Iterator[None]:
    """Custom metrics by `rules` from the Prometheus at host:port, while the context lasts. Log and settings are in
    `folder`.
    """
    build.ensure(paths, [build.PROMETHEUS_ADAPTER], Reporter())
    credentials.ensure_all(paths, [])
    pair = KeyPair.named(folder, "serving")
    ensure_signed(pair, Subject(NAME, alternative_names=[f"{NAME}.{NAMESPACE}.svc"]), credentials.authority(paths))
    (folder / "adapter.yaml").write_text(yaml.safe_dump({"rules": list(rules)}), encoding="utf-8")
    addons.apply(paths, _rights())
    ready = answers(f"https://{network.HOST_IP}:{_PORT}/readyz")
    with running(NAME, _command(paths, folder, prometheus, pair), ready, folder / "adapter.log", hint=_HINT):
        addons.apply(paths, _connection(credentials.authority(paths)))
        try:
            addons.kubectl(
                paths, "wait", "--for=condition=Available", f"--timeout={_WAIT_SECONDS}s", f"apiservice/{APISERVICE}"
            )
            yield
        finally:
            # First of all: as long as it is there and does not answer, no namespace can be deleted.
            addons.kubectl(paths, "delete", "apiservice", APISERVICE)
            addons.kubectl(paths, "delete", "namespace", NAMESPACE, "--wait=false")


def _command(paths: Paths, folder: Path, prometheus: str, pair: KeyPair) -> list[str]:
    config = credentials.kubeconfig(paths, NAME)
    return [
        str(build.binary(paths.cache, NAME)),
        f"--config={folder / 'adapter.yaml'}",
        f"--prometheus-url=http://{prometheus}",
        f"--bind-address={network.HOST_IP}",
        f"--secure-port={_PORT}",
        f"--tls-cert-file={pair.certificate}",
        f"--tls-private-key-file={pair.key}",
        f"--lister-kubeconfig={config}",
        f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}",
        f"--metrics-relist-interval={_RELIST}",
        "--metrics-max-age=1m",
    ]


def _rights() -> list[dict[str, Any]]:
    """What its own manifests give it: to ask who may ask, and to look at what the metrics are of."""
    user = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": credentials.CLIENTS[NAME].common_name}
    rbac: dict[str, Any] = {"apiVersion": "rbac.authorization.k8s.io/v1"}
    role: dict[str, Any] = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole"}
    rules = [{"apiGroups": [""], "resources": ["namespaces", "pods"], "verbs": ["get", "list", "watch"]}]
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {**rbac, "kind": "ClusterRole", "metadata": {"name": NAME}, "rules": rules},
        *(
            {
                **rbac,
                "kind": "ClusterRoleBinding",
                "metadata": {"name": f"{NAME}:{name}"},
                "roleRef": {**role, "name": name},
                "subjects": [user],
            }
            for name in (NAME, "system:auth-delegator")
        ),
        {
            **rbac,
            "kind": "RoleBinding",
            "metadata": {"name": NAME, "namespace": "kube-system"},
            "roleRef": {**role, "kind": "Role", "name": "extension-apiserver-authentication-reader"},
            "subjects": [user],
        },
    ]


def _connection(authority: KeyPair) -> list[dict[str, Any]]:
    """How the API server reaches it: a Service without a selector."""
    meta = {"name": NAME, "namespace": NAMESPACE}
    version, _, group = APISERVICE.partition(".")
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta,
            "spec": {"ports": [{"name": "https", "port": 443, "targetPort": _PORT}]},
        },
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**meta, "labels": {"kubernetes.io/service-name": NAME}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [network.HOST_IP], "conditions": {"ready": True}}],
            "ports": [{"name": "https", "port": _PORT, "protocol": "TCP"}],
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": APISERVICE},
            "spec": {
                "group": group,
                "version": version,
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "service": {"name": NAME, "namespace": NAMESPACE},
                "caBundle": base64.b64encode(authority.certificate.read_bytes()).decode(),
            },
        },
    ]
