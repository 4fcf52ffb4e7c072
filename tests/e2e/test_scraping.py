"""A real Prometheus, set up by the chart's own monitors and rules, scrapes operator, training and agents."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from e2e.conftest import Quickstart
from e2e.test_quickstart import BASE, short_training
from integration.harness import Kubectl, eventually
from tunesmith_cluster import Cluster, tools
from tunesmith_cluster.monitors import SEEN, discovery
from tunesmith_cluster.progress import Silent
from tunesmith_cluster.prometheus import Prometheus, serving
from tunesmith_cluster.release import CHART, NAME, NAMESPACE

VALUES = {
    "serviceMonitor": {"enabled": True, "interval": "1s"},
    "podMonitor": {"enabled": True, "interval": "1s"},
    "rules": {"enabled": True},
}
FOR = "3s"
"""In place of the alerts' own minutes: how long something must be broken."""
SCRAPED = 30


@pytest.fixture(scope="module")
def prometheus(quickstart: Quickstart, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    cluster = Cluster()
    helm = tools.find("helm", cluster.paths, Silent())
    command = [str(helm), "template", NAME, str(CHART), "--namespace", NAMESPACE, "--values", "-"]
    rendered = subprocess.run(
        command, input=yaml.safe_dump({"metrics": VALUES}), capture_output=True, text=True, check=True
    ).stdout
    manifests = [one for one in yaml.load_all(rendered, yaml.CSafeLoader) if one]
    [rules] = [one["spec"] for one in manifests if one["kind"] == "PrometheusRule"]
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        if "for" in rule:
            rule["for"] = FOR
    folder = tmp_path_factory.mktemp("prometheus")

    def look() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(
            quickstart.kubectl("get", ",".join(SEEN), "--all-namespaces", "-o", "json")
        )["items"]
        return found

    with discovery(manifests, look, folder) as configs, serving(cluster.paths, folder, configs, rules) as running:
        yield running


def wait_for(prometheus: Prometheus, expression: str, seconds: float = SCRAPED) -> list[dict[str, Any]]:
    """Until the expression is true of some series. Returns them."""
    found: list[dict[str, Any]] = eventually(
        lambda: prometheus.query(expression),
        lambda: f"{expression}: nothing; targets: {[(t['scrapeUrl'], t['lastError']) for t in prometheus.targets()]}",
        seconds,
    )
    return found


def test_the_operator_and_each_agent_are_scraped(prometheus: Prometheus, quickstart: Quickstart) -> None:
    [leader] = wait_for(prometheus, "tunesmith_leader == 1")
    assert leader["metric"]["namespace"] == NAMESPACE
    wait_for(prometheus, 'rate(tunesmith_reconciles_total{result="ok"}[1m]) > 0')
    wait_for(prometheus, 'sum by (verb) (tunesmith_api_requests_total{verb="GET"}) > 0')
    for deployment, adapters in (("chat", 2), ("chat-merged", 0)):
        [engine] = wait_for(prometheus, f'tunesmith_agent_engine_up{{tunesmith_io_name="{deployment}"}} == 1')
        assert engine["metric"]["pod"] == quickstart.pod(deployment)["metadata"]["name"]
        ready = f'tunesmith_agent_adapters{{state="Ready", tunesmith_io_name="{deployment}"}}'
        assert prometheus.value(ready) == adapters
    assert prometheus.value("sum(tunesmith_agent_load_seconds_count) >= 2") is not None
    assert {one["health"] for one in prometheus.targets()} == {"up"}


def test_a_training_is_scraped_while_it_runs_and_counted_when_it_is_over(
    prometheus: Prometheus, quickstart: Quickstart, removed_after: Callable[..., None]
) -> None:
    ended = 'sum(tunesmith_jobs_ended_total{namespace="default", reason="Completed"})'
    before = prometheus.value(ended) or 0
    removed_after(short_training("measured", "configmap://self-cognition/general.jsonl"))
    of = '{tunesmith_io_name="measured"}'
    [step] = wait_for(prometheus, f"tunesmith_training_step{of} >= 3", 300)
    quickstart.kubectl.wait("ftj", "measured", "Completed", seconds=300)
    assert step["metric"]["pod"].startswith("measured-train-1-0")
    for name in ("loss", "learning_rate", "tokens_per_second", "eta_seconds", "peak_memory_bytes"):
        assert (prometheus.value(f"max_over_time(tunesmith_training_{name}{of}[10m])") or 0) > 0, name
    assert prometheus.value(f"max_over_time(tunesmith_training_total_steps{of}[10m])") == 12
    wait_for(prometheus, f"{ended} == {before + 1}")
    wait_for(prometheus, 'tunesmith_device_hours_total{namespace="default", device="cpu", what="used"} > 0')


def test_labels_are_bounded_no_series_of_the_operator_has_a_resources_name(prometheus: Prometheus) -> None:
    series = prometheus.query('{__name__=~"tunesmith_.+", job=~"ServiceMonitor/.+"}')
    assert len(series) > 20
    labels = {label for one in series for label in one["metric"]} - {"__name__", "pod", "container", "instance", "job"}
    assert labels <= {"namespace", "kind", "type", "status", "result", "reason", "device", "what", "verb", "code", "le"}
    values = {value for one in series for label, value in one["metric"].items() if label in labels}
    assert not {"measured", "swift-robot", "xiao-huang", "chat", "chat-merged"} & values


@pytest.mark.long
def test_an_adapter_that_cannot_be_served_fires_its_alert_and_no_other(
    prometheus: Prometheus, quickstart: Quickstart
) -> None:
    adapters = quickstart.kubectl.get("mdep", "chat")["spec"]["adapters"]

    def serve(*more: dict[str, str]) -> None:
        patch = {"spec": {"adapters": [*adapters, *more]}}
        quickstart.kubectl("patch", "mdep", "chat", "--type=merge", "-p", json.dumps(patch))

    serve({"name": "bad", "uri": BASE})
    eventually(lambda: "TunesmithAdapterFailed" in prometheus.firing(), lambda: str(prometheus.firing()))
    assert prometheus.firing()["TunesmithAdapterFailed"]["pod"] == quickstart.pod("chat")["metadata"]["name"]
    assert set(prometheus.firing()) == {"TunesmithAdapterFailed"}
    serve()
    eventually(lambda: not prometheus.firing(), lambda: str(prometheus.firing()))


@pytest.mark.long
def test_an_engine_that_was_killed_fires_its_alert_until_it_is_back(
    prometheus: Prometheus, quickstart: Quickstart
) -> None:
    name = quickstart.pod("chat")["metadata"]["name"]
    quickstart.kubectl("exec", name, "-c", "engine", "--", "python3", "-c", "import os; os.kill(1, 15)")
    eventually(lambda: "TunesmithEngineDown" in prometheus.firing(), lambda: str(prometheus.firing()))
    assert prometheus.firing()["TunesmithEngineDown"]["pod"] == name
    quickstart.wait_for_models("chat", "base", "lora1", "lora2")
    eventually(lambda: not prometheus.firing(), lambda: str(prometheus.firing()))


def test_no_operator_fires_its_alert_until_one_leads_again(prometheus: Prometheus, quickstart: Quickstart) -> None:
    operator = Kubectl(quickstart.kubectl.binary, NAMESPACE)
    operator("scale", f"deployment/{NAME}", "--replicas=0")
    try:
        eventually(lambda: "TunesmithNoLeader" in prometheus.firing(), lambda: str(prometheus.firing()))
    finally:
        operator("scale", f"deployment/{NAME}", "--replicas=1")
    eventually(lambda: not prometheus.firing(), lambda: str(prometheus.firing()))
