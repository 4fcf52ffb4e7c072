"""Argo CD's own controller on the test cluster, with the Applications of examples/argocd and a Git repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from fleet.conftest import IMAGE as ENGINE
from fleet.conftest import cluster  # noqa: F401  a fixture
from integration.harness import ROOT, Kubectl, chart_images, eventually, prepare
from tunesmith_cluster import Cluster, argocd

EXAMPLES = ROOT / "examples" / "argocd"
OPERATOR, MODELS = "tunesmith", "models"
"""The Applications of the examples."""
CHECKS = EXAMPLES / "argocd-cm.yaml"
SECONDS = 180


class Repository:
    """A Git repository, whose address Argo CD is given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._git("init", "--quiet", "--initial-branch=main")

    @property
    def url(self) -> str:
        return f"file://{self.folder}"

    def commit(self) -> str:
        """All that is in the folder now; the revision."""
        self._git("add", "--all")
        self._git("-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "--quiet", "--message=change")
        return self._git("rev-parse", "HEAD").strip()

    def _git(self, *arguments: str) -> str:
        environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull}
        command = ["git", "-C", self.folder, *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


@dataclass
class Watched:
    """Every state of an Application that the API server told of, in their order."""

    seen: list[dict[str, Any]] = field(default_factory=list)

    def drifts(self) -> list[str]:
        """Resources that were in sync with a commit, and later were not any more with the same commit."""
        found, synced = [], set[tuple[str, str, str]]()
        for body in self.seen:
            status = body.get("status", {})
            revision = status.get("sync", {}).get("revision", "")
            for one in status.get("resources", ()):
                key = (revision, one["kind"], one["name"])
                if one.get("status") == "Synced":
                    synced.add(key)
                elif key in synced:
                    synced.remove(key)
                    found.append(f"{one['kind']}/{one['name']} is {one.get('status')}")
        return found


@dataclass
class Argo:
    """Argo CD that runs, and kubectl in its namespace and in the models'."""

    cluster: Cluster
    own: Kubectl
    models: Kubectl
    folder: Path

    def apply(self, body: dict[str, Any]) -> None:
        self.own("apply", "--server-side", "-f", "-", stdin=body)

    def application(self, name: str) -> dict[str, Any]:
        return self.own.get("application", name)

    def refresh(self, name: str) -> None:
        """As a webhook of the repository does: else Argo CD looks every three minutes."""
        self.own("annotate", "--overwrite", "application", name, "argocd.argoproj.io/refresh=normal")

    def delete(self, name: str) -> None:
        """The Application and what it made, by `argocd app terminate-op` first: a sync that waits for a job holds the
        deletion up.
        """
        if self.application(name).get("status", {}).get("operationState", {}).get("phase") == "Running":
            end = '{"status": {"operationState": {"phase": "Terminating"}}}'
            self.own("patch", "application", name, "--type=merge", f"--patch={end}")
        self.own("delete", "application", name, "--timeout=120s")

    def status_of(self, name: str, kind: str, resource: str) -> dict[str, Any]:
        """What the Application says of one resource; nothing where it has none."""
        resources = self.application(name).get("status", {}).get("resources", [])
        return next((one for one in resources if (one["kind"], one["name"]) == (kind, resource)), {})

    def health(self, name: str, kind: str, resource: str) -> tuple[str, str]:
        found = self.status_of(name, kind, resource).get("health", {})
        return found.get("status", ""), found.get("message", "")

    def wait(self, name: str, health: str, revision: str, sync: str = "Synced") -> None:
        """Until the Application is in sync with the revision, and has the health."""

        def look() -> tuple[str, str, str]:
            status = self.application(name).get("status", {})
            compared = status.get("sync", {})
            return compared.get("status", ""), status.get("health", {}).get("status", ""), compared.get("revision", "")

        eventually(lambda: look() == (sync, health, revision), lambda: self.describe(name), SECONDS)

    def wait_for(self, probe: Callable[[], Any], name: str) -> Any:
        return eventually(probe, lambda: self.describe(name), SECONDS)

    def describe(self, name: str) -> str:
        status = self.application(name).get("status", {})
        status.get("sync", {}).pop("comparedTo", None)
        state = status.get("operationState", {})
        shown = {key: status.get(key) for key in ("sync", "health", "conditions", "resources")}
        return json.dumps({**shown, "operation": [state.get("phase"), state.get("message")]}, indent=1)

    @contextmanager
    def watched(self, name: str) -> Iterator[Watched]:
        """All states of the Application while the context lasts."""
        own = Watched()
        command = [self.own.binary, "-n", argocd.NAMESPACE, "get", "application", name, "-o", "json", "--watch"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:

            def read() -> None:
                lines: list[str] = []
                for line in process.stdout or ():
                    lines.append(line)
                    if line == "}\n":
                        own.seen.append(json.loads("".join(lines)))
                        lines.clear()

            thread = threading.Thread(target=read)
            thread.start()
            try:
                yield own
            finally:
                process.terminate()
                thread.join()


def example(name: str, repository: Repository) -> dict[str, Any]:
    """An Application of the examples, of a repository of ours."""
    body: dict[str, Any] = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    body["spec"]["source"]["repoURL"] = repository.url
    return body


def chart_values(cluster: Cluster) -> dict[str, Any]:  # noqa: F811
    """The checkout's operator, the scripted trainer, and the small engine; quick to look."""
    values: dict[str, Any] = {}
    for key, value in chart_images(cluster, ENGINE).items():
        parent, _, leaf = key.partition(".")
        values.setdefault(parent, {})[leaf] = value
    environment = {"TUNESMITH_POLL_SECONDS": "1", "TUNESMITH_PROGRESS_SECONDS": "0"}
    return {**values, "extraEnv": [{"name": key, "value": value} for key, value in environment.items()]}


@pytest.fixture(scope="session")
def argo(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Argo]:  # noqa: F811
    """Argo CD with our health checks, put in as docs/gitops.md says."""
    folder = tmp_path_factory.mktemp("argocd")
    binary = cluster.binary("kubectl")
    own, models = Kubectl(binary, argocd.NAMESPACE), Kubectl(binary, "models")
    try:
        with argocd.serving(cluster.paths, folder):
            own("patch", "configmap", "argocd-cm", "--patch-file", str(CHECKS))
            yield Argo(cluster, own, models, folder)
    finally:
        for log in sorted(folder.glob("*.log")):
            print(f"── {log.name}\n{log.read_text()[-20_000:]}")
        own("delete", "namespace", "tunesmith-system", "models", "--ignore-not-found", "--wait=false")
        prepare(cluster)  # the CRDs are those of the checkout again


@pytest.fixture(scope="session")
def platform(argo: Argo) -> Iterator[Watched]:
    """The operator, from the chart in a repository; all that its Application went through."""
    repository = Repository(argo.folder / "platform")
    shutil.copytree(ROOT / "helm" / "tunesmith", repository.folder / "helm" / "tunesmith")
    revision = repository.commit()
    argo.models("apply", "-f", str(EXAMPLES / "namespace.yaml"))
    body = example("operator", repository)
    body["spec"]["source"]["helm"]["valuesObject"] |= chart_values(argo.cluster)
    argo.apply(body)
    with argo.watched(OPERATOR) as watched:
        argo.wait(OPERATOR, "Healthy", revision)
        yield watched
