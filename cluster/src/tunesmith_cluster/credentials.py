"""Who the cluster's components are: their certificates and kubeconfigs."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from pathlib import Path

import yaml

from tunesmith_cluster import files, network
from tunesmith_cluster.certificates import (
    KeyPair,
    Subject,
    ensure_authority,
    ensure_signed,
    ensure_signing_key,
)
from tunesmith_cluster.nodes import Node
from tunesmith_cluster.paths import Paths

# The users below get their rights from Kubernetes' built-in bindings, or from addons.py.
CLIENTS = {
    "admin": Subject("admin", ["system:masters"]),
    "controller-manager": Subject("system:kube-controller-manager"),
    "scheduler": Subject("system:kube-scheduler"),
    "proxy": Subject("system:kube-proxy"),
    "coredns": Subject("system:coredns"),
    "local-path-provisioner": Subject("system:local-path-provisioner"),
    "apiserver-kubelet-client": Subject("kube-apiserver-kubelet-client"),
    "kueue": Subject("system:kueue"),
    "lws": Subject("system:lws"),
    "prometheus-adapter": Subject("system:prometheus-adapter"),
}

FRONT_PROXY = "front-proxy-client"
"""Whom the API server is to those that it passes requests on to."""
_APISERVER = Subject(
    "kube-apiserver",
    alternative_names=[
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "127.0.0.1",
        network.HOST_IP,
        network.API_SERVICE_IP,
    ],
)


def authority(paths: Paths) -> KeyPair:
    """The cluster's certificate authority."""
    return KeyPair.named(paths.pki, "ca")


def etcd_authority(paths: Paths) -> KeyPair:
    """A second authority for etcd alone: with the first, every component's certificate would open it."""
    return KeyPair.named(paths.pki, "etcd-ca")


def front_proxy_authority(paths: Paths) -> KeyPair:
    """A third for the API server as it passes requests on (aggregation): its headers say who asks, and are believed."""
    return KeyPair.named(paths.pki, "front-proxy-ca")


def pair(paths: Paths, name: str) -> KeyPair:
    """A component's key and certificate."""
    return KeyPair.named(paths.pki, name)


def kubeconfig(paths: Paths, name: str) -> Path:
    """A component's kubeconfig."""
    return paths.kubeconfigs / f"{name}.yaml"


def service_account_key(paths: Paths) -> tuple[Path, Path]:
    """The private and public key of service account tokens."""
    return paths.pki / "service-account.key", paths.pki / "service-account.pub"


def kubelet(node: Node) -> Subject:
    """Whom a kubelet's certificate names; it serves with it, too."""
    return Subject(f"system:node:{node.name}", ["system:nodes"], [node.name, node.address])


def ensure_all(paths: Paths, nodes: Iterable[Node]) -> None:
    """Create whatever key, certificate or kubeconfig is missing."""
    paths.pki.mkdir(parents=True, exist_ok=True, mode=0o700)
    paths.kubeconfigs.mkdir(parents=True, exist_ok=True, mode=0o700)
    ensure_authority(authority(paths), "tunesmith-cluster")
    ensure_signing_key(*service_account_key(paths))
    ensure_authority(etcd_authority(paths), "tunesmith-cluster-etcd")
    ensure_signed(pair(paths, "etcd"), Subject("etcd", alternative_names=["127.0.0.1"]), etcd_authority(paths))
    ensure_signed(pair(paths, "apiserver"), _APISERVER, authority(paths))
    ensure_authority(front_proxy_authority(paths), "tunesmith-cluster-front-proxy")
    ensure_signed(pair(paths, FRONT_PROXY), Subject(FRONT_PROXY), front_proxy_authority(paths))
    for name, subject in {**CLIENTS, **{node.kubelet_service: kubelet(node) for node in nodes}}.items():
        ensure_signed(pair(paths, name), subject, authority(paths))
        path = kubeconfig(paths, name)
        if not path.exists():
            text = render_kubeconfig(name, network.API_URL, authority(paths).certificate, pair(paths, name))
            files.write(path, text.encode(), 0o600)


def render_kubeconfig(user: str, server: str, ca: Path, client: KeyPair) -> str:
    """A kubeconfig that needs no other file, so that it can be copied."""

    def data(path: Path) -> str:
        return base64.b64encode(path.read_bytes()).decode()

    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tunesmith", "cluster": {"server": server, "certificate-authority-data": data(ca)}}],
            "users": [
                {
                    "name": user,
                    "user": {
                        "client-certificate-data": data(client.certificate),
                        "client-key-data": data(client.key),
                    },
                }
            ],
            "contexts": [{"name": "tunesmith", "context": {"cluster": "tunesmith", "user": user}}],
            "current-context": "tunesmith",
        },
        sort_keys=False,
    )
