"""What a cluster needs inside itself: rights for the processes that serve it, and a default StorageClass."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

from tunesmith_cluster import build, credentials
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.images import HOST_IMAGE
from tunesmith_cluster.paths import Paths

STORAGE_CLASS = "standard"
PROVISIONER = "rancher.io/local-path"
STORAGE_NAMESPACE = "local-path-storage"
STORAGE_ACCOUNT = "local-path-provisioner"
STORAGE_CONFIG = "local-path-config"

# 0777 because pods run as any user, and a folder of the node takes no fsGroup.
_SETUP = """\
#!/bin/sh
set -eu
mkdir -m 0777 -p "$VOL_DIR"
"""
_TEARDOWN = """\
#!/bin/sh
set -eu
rm -rf "$VOL_DIR"
"""
_READ = ["get", "list", "watch"]


def manifests(volumes: Path) -> list[dict[str, Any]]:
    """Every object, in the order in which they can be created."""
    return [*_dns(), *_kubelet_api(), *_storage_rights(), _storage_config(volumes), _storage_class()]


def apply(paths: Paths, objects: list[dict[str, Any]]) -> None:
    """Create or update every object."""
    kubectl(
        paths,
        "apply",
        "--server-side",
        "--force-conflicts",
        "--field-manager=tunesmith-cluster",
        "--filename=-",
        stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}),
    )


def establish(paths: Paths, kinds: list[str]) -> None:
    """Wait until the API server serves the CustomResourceDefinitions of these names."""
    names = [f"crd/{name}" for name in kinds]
    for last in (False, False, True):
        try:
            kubectl(paths, "wait", "--for=condition=Established", "--timeout=60s", *names)
        except ClusterError:
            # kubectl gives up at once on one that is so new that it has no conditions yet.
            if last:
                raise
            time.sleep(1)
        else:
            return


def kubectl(paths: Paths, *arguments: str, stdin: str | None = None) -> None:
    """Run kubectl as the administrator."""
    done = subprocess.run(
        [str(build.binary(paths.cache, "kubectl")), f"--kubeconfig={paths.admin_kubeconfig}", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ClusterError(f"`kubectl {arguments[0]}` of the cluster's own objects failed: {done.stderr.strip()}")


def _dns() -> list[dict[str, Any]]:
    rules = [
        _rule("", ["endpoints", "services", "pods", "namespaces"], ["list", "watch"]),
        _rule("discovery.k8s.io", ["endpointslices"], ["list", "watch"]),
    ]
    user = credentials.CLIENTS["coredns"].common_name
    return [_cluster_role(user, rules), _cluster_role_binding(user, user, user)]


def _kubelet_api() -> list[dict[str, Any]]:
    user = credentials.CLIENTS["apiserver-kubelet-client"].common_name
    return [_cluster_role_binding(user, "system:kubelet-api-admin", user)]


def _storage_rights() -> list[dict[str, Any]]:
    user = credentials.CLIENTS["local-path-provisioner"].common_name
    rules = [
        _rule("", ["nodes", "persistentvolumeclaims"], _READ),
        _rule("", ["persistentvolumes"], [*_READ, "create", "patch", "update", "delete"]),
        _rule("", ["events"], ["create", "patch"]),
        _rule("storage.k8s.io", ["storageclasses"], _READ),
    ]
    in_namespace = [
        _rule("", ["configmaps"], ["get"]),
        _rule("", ["pods"], ["get", "create", "delete"]),
    ]
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": STORAGE_NAMESPACE}},
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": STORAGE_ACCOUNT, "namespace": STORAGE_NAMESPACE},
            "automountServiceAccountToken": False,
        },
        _cluster_role(user, rules),
        _cluster_role_binding(user, user, user),
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {"name": user, "namespace": STORAGE_NAMESPACE},
            "rules": in_namespace,
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": user, "namespace": STORAGE_NAMESPACE},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": user},
            "subjects": [_user(user)],
        },
    ]


def _storage_config(volumes: Path) -> dict[str, Any]:
    helper = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "helper-pod"},
        "spec": {
            "containers": [{"name": "helper-pod", "image": HOST_IMAGE, "imagePullPolicy": "Never"}],
            "terminationGracePeriodSeconds": 0,
        },
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": STORAGE_CONFIG, "namespace": STORAGE_NAMESPACE},
        "data": {
            # All nodes are on this machine and share every folder: that is what makes ReadWriteMany possible.
            "config.json": json.dumps({"sharedFileSystemPath": str(volumes)}),
            "helperPod.yaml": json.dumps(helper),
            "setup": _SETUP,
            "teardown": _TEARDOWN,
        },
    }


def _storage_class() -> dict[str, Any]:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": STORAGE_CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": PROVISIONER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
    }


def _rule(group: str, resources: list[str], verbs: list[str]) -> dict[str, Any]:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs}


def _user(name: str) -> dict[str, Any]:
    return {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name}


def _cluster_role(name: str, rules: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name},
        "rules": rules,
    }


def _cluster_role_binding(name: str, role: str, user: str) -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [_user(user)],
    }
