"""The chart as a platform team installs it: the operator in its pod, with the rights of its own service account."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml
from integration.harness import Kubectl, chart_images, own_namespace, prepare
from tunesmith_cluster import Cluster, environments, tools, workloads
from tunesmith_cluster.progress import Reporter, Silent
from tunesmith_cluster.release import CHART, Release

PREVIOUS = Path(__file__).parent / "previous"
"""The version before this one: its chart by `helm package`, its operator by `uv build --wheel`."""
NEXT = {
    "replicas": 2,
    # A token that is old after seconds, so that it is seen to be made anew.
    "extraEnv": [
        {"name": "TUNESMITH_TOKEN_DAYS", "value": "0.0002"},
        {"name": "TUNESMITH_PROGRESS_SECONDS", "value": "0"},
        {"name": "TUNESMITH_POLL_SECONDS", "value": "1"},
    ],
}


@dataclass(frozen=True)
class Installation:
    """A release that watches one namespace, and one that it does not watch."""

    cluster: Cluster
    release: Release
    system: Kubectl
    tenant: Kubectl
    stranger: Kubectl
    images: dict[str, str]
    folder: Path
    began: str

    @property
    def account(self) -> str:
        """The operator's name, as the API server knows it."""
        return f"system:serviceaccount:{self.system.namespace}:{self.release.name}"

    def values(self, **more: Any) -> Path:
        path = self.folder / "values.yaml"
        base = {"fullnameOverride": self.release.name, "watchNamespaces": [self.tenant.namespace]}
        path.write_text(yaml.safe_dump({**base, **more}))
        return path

    def install(self, chart: Path = CHART, operator: str | None = None, **values: Any) -> None:
        """Install or upgrade: the checkout's chart and operator, or others."""
        images = dict(self.images)
        if operator:
            images["operatorImage.repository"], images["operatorImage.tag"] = workloads.split_tag(operator)
        self.release.install(images, ["--values", str(self.values(**values))], chart=chart)

    def install_previous(self) -> None:
        """The version before: its chart, and its operator on this one's packages."""
        (chart,), (wheel,) = PREVIOUS.glob("*.tgz"), PREVIOUS.glob("*.whl")
        shutil.unpack_archive(chart, self.folder)
        shutil.unpack_archive(wheel, self.folder / "wheel", format="zip")
        environment = environments.ensure(self.cluster.paths, environments.OPERATOR, Silent())
        operator = workloads.load_operator(self.cluster, self.folder / "wheel/tunesmith", environment)
        self.install(self.folder / "tunesmith", operator)

    def helm(self, *arguments: str) -> str:
        where = [f"--kubeconfig={self.release.kubeconfig}", f"--namespace={self.release.namespace}"]
        command = [str(self.release.helm), *where, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def requests(self) -> list[dict[str, Any]]:
        """What the operator asked of the API server since the installation, by the server's own audit log."""
        found = []
        for path in sorted(self.cluster.paths.logs.glob("audit*.log")):
            with path.open() as file:
                found += [event for line in file if self.account in line and (event := json.loads(line))]
        return [
            e for e in found if e["user"]["username"] == self.account and e["requestReceivedTimestamp"] > self.began
        ]


@contextmanager
def installation(folder: Path) -> Iterator[Installation]:
    """Nothing is installed yet; what was is removed. All three namespaces refuse pods that are not restricted."""
    cluster = Cluster()
    cluster.up()
    prepare(cluster)
    images = chart_images(cluster)
    name = f"ts-{uuid4().hex[:6]}"
    helm = tools.find("helm", cluster.paths, Reporter())
    with ExitStack() as stack:
        system, tenant, stranger = (
            stack.enter_context(own_namespace(cluster, prefix)) for prefix in ("system", "tenant", "stranger")
        )
        release = Release(helm, cluster.kubeconfig, name, system.namespace)
        began = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
        yield Installation(cluster, release, system, tenant, stranger, images, folder, began)
        release.uninstall()
        prepare(cluster)  # the CRDs are those of the checkout again, whatever went wrong


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation of the version before."""
    with installation(tmp_path_factory.mktemp("chart")) as own:
        own.install_previous()
        yield own
