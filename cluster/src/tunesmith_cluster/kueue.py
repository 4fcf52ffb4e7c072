"""Kueue, an add-on: its controller manager as a process of this machine, its objects from its own chart."""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tunesmith_cluster import addons, build, credentials, files
from tunesmith_cluster.certificates import KeyPair, Subject, ensure_signed
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.probes import answers
from tunesmith_cluster.processes import Service

NAME = "kueue"
NAMESPACE = "kueue-system"
_LOOPBACK = "127.0.0.1"
_WEBHOOK_PORT, _METRICS_PORT, _HEALTH_PORT = 9443, 9444, 9445
_WEBHOOKS = {"MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"}
_RIGHTS = {"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}
# Where Kueue looks for the certificate of its metrics' port, which no option changes: so it gets an /etc of its own.
_METRICS_CERTIFICATE = Path("kueue/metrics/certs")
_WITH_OWN_ETC = 'mount --bind "$0" /etc && exec "$@"'


def is_added(paths: Paths) -> bool:
    """Whether the cluster has Kueue."""
    return paths.kueue.is_dir()


def configuration(paths: Paths) -> str:
    """The controller manager's configuration: Jobs and nothing else, everything on the loopback."""
    return yaml.safe_dump(
        {
            "apiVersion": "config.kueue.x-k8s.io/v1beta2",
            "kind": "Configuration",
            "namespace": NAMESPACE,
            "health": {"healthProbeBindAddress": f"{_LOOPBACK}:{_HEALTH_PORT}"},
            "metrics": {"bindAddress": f"{_LOOPBACK}:{_METRICS_PORT}"},
            "webhook": {"host": _LOOPBACK, "port": _WEBHOOK_PORT, "certDir": str(_certificates(paths))},
            "leaderElection": {"leaderElect": False},
            "internalCertManagement": {"enable": False},
            "integrations": {"frameworks": ["batch/job"]},
            # An API server of its own, and other clusters.
            "featureGates": {"VisibilityOnDemand": False, "MultiKueue": False},
        },
        sort_keys=False,
    )


def service(paths: Paths) -> Service:
    """The controller manager."""
    command = [
        *("unshare", "--mount", "--propagation=private", "sh", "-c", _WITH_OWN_ETC, str(_etc(paths))),
        str(build.binary(paths.cache, NAME)),
        f"--config={_config(paths)}",
        f"--kubeconfig={credentials.kubeconfig(paths, NAME)}",
    ]
    ready = answers(f"http://{_LOOPBACK}:{_HEALTH_PORT}/readyz")
    ports = (_WEBHOOK_PORT, _METRICS_PORT, _HEALTH_PORT)
    return Service(NAME, command, ready, listens=[(_LOOPBACK, port) for port in ports])


def configure(paths: Paths) -> None:
    """Write the controller manager's certificate and configuration, and the objects that it needs."""
    folder = _certificates(paths)
    folder.mkdir(parents=True, exist_ok=True)
    pair = KeyPair(folder / "tls.key", folder / "tls.crt")
    ensure_signed(pair, Subject(NAME, alternative_names=[_LOOPBACK]), credentials.authority(paths))
    files.write(_config(paths), configuration(paths).encode())
    ca = base64.b64encode(credentials.authority(paths).certificate.read_bytes()).decode()
    objects = adapted(_render(paths), f"https://{_LOOPBACK}:{_WEBHOOK_PORT}", ca)
    files.write(_objects(paths), json.dumps(objects).encode())


def install(paths: Paths) -> None:
    """Create what the controller manager needs to start: its kinds and its rights."""
    objects = _read_objects(paths)
    addons.apply(paths, [item for item in objects if item["kind"] not in _WEBHOOKS])
    kinds = [item for item in objects if item["kind"] == "CustomResourceDefinition"]
    addons.establish(paths, [kind["metadata"]["name"] for kind in kinds])


def connect(paths: Paths) -> None:
    """Let the API server ask it about Jobs. Not before it runs: until then every Job would be refused."""
    addons.apply(paths, [item for item in _read_objects(paths) if item["kind"] in _WEBHOOKS])


def adapted(rendered: list[dict[str, Any]], url: str, ca: str) -> list[dict[str, Any]]:
    """What of the chart's objects a controller manager outside the cluster needs, reached by its URL, not a Service."""
    kept = [item for item in rendered if item["kind"] in {"CustomResourceDefinition", *_WEBHOOKS, *_RIGHTS}]
    objects = [_by_url(item, url, ca) for item in kept]
    user = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": credentials.CLIENTS[NAME].common_name}
    for item in objects:
        if item["kind"].endswith("RoleBinding"):
            item["subjects"] = [user if each["kind"] == "ServiceAccount" else each for each in item["subjects"]]
    return [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}, *objects]


def _by_url(value: Any, url: str, ca: str) -> Any:
    if isinstance(value, list):
        return [_by_url(item, url, ca) for item in value]
    if not isinstance(value, dict):
        return value
    changed = {key: _by_url(item, url, ca) for key, item in value.items() if key != "clientConfig"}
    if "clientConfig" in value:
        changed["clientConfig"] = {"url": url + value["clientConfig"]["service"]["path"], "caBundle": ca}
    return changed


def _render(paths: Paths) -> list[dict[str, Any]]:
    chart = build.binary(paths.cache, NAME).parent / build.KUEUE_CHART
    command = [
        *(str(build.binary(paths.cache, "helm")), "template", NAME, str(chart), f"--namespace={NAMESPACE}"),
        f"--set-file=managerConfig.controllerManagerConfigYaml={_config(paths)}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"Kueue's chart could not be rendered: {done.stderr.strip()}")
    # The C loader: one of its kinds alone is a megabyte.
    return [item for item in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if item]


def _read_objects(paths: Paths) -> list[dict[str, Any]]:
    objects: list[dict[str, Any]] = json.loads(_objects(paths).read_text(encoding="utf-8"))
    return objects


def _etc(paths: Paths) -> Path:
    return paths.kueue / "etc"


def _certificates(paths: Paths) -> Path:
    return _etc(paths) / _METRICS_CERTIFICATE


def _config(paths: Paths) -> Path:
    return paths.kueue / "config.yaml"


def _objects(paths: Paths) -> Path:
    return paths.kueue / "objects.json"
