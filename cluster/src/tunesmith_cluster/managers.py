"""Other projects' controller managers, add-ons: each a process of this machine, with the objects of its own chart."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tunesmith_cluster import addons, build, credentials, files
from tunesmith_cluster.certificates import KeyPair, Subject, ensure_signed
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.probes import answers
from tunesmith_cluster.processes import Service

LOOPBACK = "127.0.0.1"
_WEBHOOKS = {"MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"}
_RIGHTS = {"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}
_WITH_OWN_ETC = 'mount --bind "$0" /etc && exec "$@"'


@dataclass(frozen=True, slots=True)
class Manager:
    """A controller manager whose configuration has the form that Kubernetes' own projects share."""

    name: str
    """Of its binary, its Helm release, its process and its folder; whose client in `credentials` it is."""
    title: str
    """Its name for people."""
    module: build.Module
    chart: Path
    """Of its source's folders, the one with the chart."""
    namespace: str
    webhook_port: int
    metrics_port: int
    health_port: int
    settings: Mapping[str, Any]
    """What its configuration says, but for where it listens."""
    ready: str
    """What answers once it can be asked."""
    chart_value: str | None = None
    """The chart's value that takes the configuration, where the chart makes other objects by it."""
    etc: Path | None = None
    """Where under /etc it looks for its certificate, if no option changes that: then it gets an /etc of its own."""

    @property
    def url(self) -> str:
        """Where the API server asks it."""
        return f"https://{LOOPBACK}:{self.webhook_port}"

    def is_added(self, paths: Paths) -> bool:
        """Whether the cluster has it."""
        return self.folder(paths).is_dir()

    def folder(self, paths: Paths) -> Path:
        """What belongs to it; it is there only if it was added."""
        return paths.state / self.name

    def configuration(self, paths: Paths) -> str:
        """Its configuration: everything on the loopback."""
        said = {
            **self.settings,
            "health": {"healthProbeBindAddress": f"{LOOPBACK}:{self.health_port}"},
            "metrics": {"bindAddress": f"{LOOPBACK}:{self.metrics_port}"},
            "webhook": {"host": LOOPBACK, "port": self.webhook_port, "certDir": str(self._certificates(paths))},
            "leaderElection": {"leaderElect": False},
            "internalCertManagement": {"enable": False},
        }
        return yaml.safe_dump(said, sort_keys=False)

    def service(self, paths: Paths) -> Service:
        """Its process."""
        own_etc = ("unshare", "--mount", "--propagation=private", "sh", "-c", _WITH_OWN_ETC, str(self._etc(paths)))
        command = [
            *(own_etc if self.etc else ()),
            str(build.binary(paths.cache, self.name)),
            f"--config={self._config(paths)}",
            f"--kubeconfig={credentials.kubeconfig(paths, self.name)}",
        ]
        ports = (self.webhook_port, self.metrics_port, self.health_port)
        return Service(self.name, command, answers(self.ready), listens=[(LOOPBACK, port) for port in ports])

    def configure(self, paths: Paths) -> None:
        """Write its certificate and configuration, and the objects that it needs."""
        folder = self._certificates(paths)
        folder.mkdir(parents=True, exist_ok=True)
        pair = KeyPair(folder / "tls.key", folder / "tls.crt")
        ensure_signed(pair, Subject(self.name, alternative_names=[LOOPBACK]), credentials.authority(paths))
        files.write(self._config(paths), self.configuration(paths).encode())
        ca = base64.b64encode(credentials.authority(paths).certificate.read_bytes()).decode()
        files.write(self._objects(paths), json.dumps(self.adapted(self._render(paths), ca)).encode())

    def install(self, paths: Paths) -> None:
        """Create what it needs to start: its kinds and its rights."""
        objects = self._read_objects(paths)
        addons.apply(paths, [item for item in objects if item["kind"] not in _WEBHOOKS])
        kinds = [item for item in objects if item["kind"] == "CustomResourceDefinition"]
        addons.establish(paths, [kind["metadata"]["name"] for kind in kinds])

    def connect(self, paths: Paths) -> None:
        """Let the API server ask it. Not before it runs: until then all that it is asked about would be refused."""
        addons.apply(paths, [item for item in self._read_objects(paths) if item["kind"] in _WEBHOOKS])

    def adapted(self, rendered: list[dict[str, Any]], ca: str) -> list[dict[str, Any]]:
        """What of the chart's objects it needs outside the cluster, reached by its URL, not a Service."""
        kept = [item for item in rendered if item["kind"] in {"CustomResourceDefinition", *_WEBHOOKS, *_RIGHTS}]
        objects = [_by_url(item, self.url, ca) for item in kept]
        who = credentials.CLIENTS[self.name].common_name
        user = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": who}
        for item in objects:
            if item["kind"].endswith("RoleBinding"):
                item["subjects"] = [user if each["kind"] == "ServiceAccount" else each for each in item["subjects"]]
        return [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}, *objects]

    def _render(self, paths: Paths) -> list[dict[str, Any]]:
        chart = build.binary(paths.cache, self.name).parent / self.chart
        command = [
            *(str(build.binary(paths.cache, "helm")), "template", self.name, str(chart)),
            *(f"--namespace={self.namespace}", "--include-crds"),
            *([f"--set-file={self.chart_value}={self._config(paths)}"] if self.chart_value else []),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"{self.title}'s chart could not be rendered: {done.stderr.strip()}")
        # The C loader: one of Kueue's kinds alone is a megabyte.
        return [item for item in yaml.load_all(done.stdout, Loader=yaml.CSafeLoader) if item]

    def _read_objects(self, paths: Paths) -> list[dict[str, Any]]:
        objects: list[dict[str, Any]] = json.loads(self._objects(paths).read_text(encoding="utf-8"))
        return objects

    def _etc(self, paths: Paths) -> Path:
        return self.folder(paths) / "etc"

    def _certificates(self, paths: Paths) -> Path:
        return self._etc(paths) / (self.etc or "")

    def _config(self, paths: Paths) -> Path:
        return self.folder(paths) / "config.yaml"

    def _objects(self, paths: Paths) -> Path:
        return self.folder(paths) / "objects.json"


def _by_url(value: Any, url: str, ca: str) -> Any:
    if isinstance(value, list):
        return [_by_url(item, url, ca) for item in value]
    if not isinstance(value, dict):
        return value
    changed = {key: _by_url(item, url, ca) for key, item in value.items() if key != "clientConfig"}
    if "clientConfig" in value:
        changed["clientConfig"] = {"url": url + value["clientConfig"]["service"]["path"], "caBundle": ca}
    return changed
