"""The pods of tests/fleet, and their metrics: Prometheus by the chart's monitors, prometheus-adapter by our example."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from fleet.conftest import ROOT, cluster, fleet, kubectl  # noqa: F401  fixtures
from integration.harness import Kubectl
from tunesmith_cluster import Cluster, custommetrics
from tunesmith_cluster.monitors import SEEN, discovery
from tunesmith_cluster.prometheus import Prometheus, serving
from tunesmith_cluster.release import CHART, NAME, NAMESPACE

RULES = ROOT / "examples" / "autoscaling" / "prometheus-adapter.yaml"
VALUES = {"metrics": {"podMonitor": {"enabled": True, "interval": "1s"}}}


@pytest.fixture(scope="session")
def prometheus(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:  # noqa: F811
    """Scrapes what the chart's PodMonitors select."""
    command = [cluster.binary("helm"), "template", NAME, CHART, "--namespace", NAMESPACE, "--values", "-"]
    rendered = subprocess.run(command, input=yaml.safe_dump(VALUES), capture_output=True, text=True, check=True).stdout
    monitors = [one for one in yaml.load_all(rendered, yaml.CSafeLoader) if one and one["kind"] == "PodMonitor"]
    folder = tmp_path_factory.mktemp("prometheus")
    everywhere = Kubectl(cluster.binary("kubectl"), "default")

    def look() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(everywhere("get", ",".join(SEEN), "-A", "-o", "json"))["items"]
        return found

    with discovery(monitors, look, folder) as configs, serving(cluster.paths, folder, configs) as running:
        yield running


@pytest.fixture(scope="session")
def custom_metrics(
    cluster: Cluster,  # noqa: F811
    prometheus: Prometheus,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    """prometheus-adapter, with the rules of our example."""
    rules = yaml.safe_load(RULES.read_text())["rules"]["custom"]
    with custommetrics.serving(cluster.paths, tmp_path_factory.mktemp("adapter"), prometheus.address, rules):
        yield
