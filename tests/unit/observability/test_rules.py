"""Rules, dashboards and runbooks: alerts fire when they should, and every query uses a metric that is there."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY, CollectorRegistry
from tunesmith import metrics
from tunesmith.agent.metrics import Metrics
from tunesmith.gateway.metrics import Metrics as Gateway
from tunesmith.kube import client
from tunesmith_cluster.environments import ROOT
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.prometheus import program

FILES = ROOT / "helm" / "tunesmith" / "files"
RULES = FILES / "rules.yaml"
RUNBOOKS = ROOT / "docs" / "runbooks"
TRAINER = ROOT / "trainer-image" / "src" / "tunesmith_trainer" / "server.py"
LABELS = {"tunesmith_io_name"}  # of the PodMonitors

LEADING = {"series": "tunesmith_leader", "values": "1x200"}
JOB = 'kind="FineTuneJob",namespace="a"'
DEPLOYMENT = 'kind="ModelDeployment",namespace="a"'
GATEWAY = 'namespace="a",tunesmith_io_name="chat"'
# Alert -> what is seen, when it must fire and no other, its labels.
CASES: dict[str, tuple[list[tuple[str, str]], str, dict[str, str]]] = {
    "TunesmithNoLeader": ([("tunesmith_leader", "0x30")], "10m", {}),
    "TunesmithReconcileErrors": (
        [
            ('tunesmith_reconciles_total{kind="FineTuneJob",result="error"}', "0+1x60"),
            ('tunesmith_reconciles_total{kind="FineTuneJob",result="ok"}', "0+4x60"),
        ],
        "30m",
        {"kind": "FineTuneJob"},
    ),
    "TunesmithQueueStuck": ([("tunesmith_queue_oldest_seconds", "0+60x30")], "12m", {}),
    "TunesmithJobsFailing": (
        [(f'tunesmith_jobs_ended_total{{{JOB},reason="DataError"}}', "0+1x60")],
        "30m",
        {"namespace": "a", "reason": "DataError"},
    ),
    "TunesmithAttemptsRestarting": (
        [(f'tunesmith_attempts_ended_total{{{JOB},reason="NodeLost"}}', "0+1x60")],
        "45m",
        {"namespace": "a", "reason": "NodeLost"},
    ),
    "TunesmithTrainingStalled": (
        [('tunesmith_training_idle_seconds{pod="p"}', "0+60x30"), ('tunesmith_training_step_seconds{pod="p"}', "2x30")],
        "10m",
        {"pod": "p"},
    ),
    "TunesmithAdapterFailed": (
        [('tunesmith_agent_adapters{pod="p",state="Failed"}', "1x60")],
        "15m",
        {"pod": "p", "state": "Failed"},
    ),
    "TunesmithEngineDown": ([('tunesmith_agent_engine_up{pod="p"}', "0x60")], "20m", {"pod": "p"}),
    "TunesmithAdaptersDrift": ([('tunesmith_agent_drift_repaired_total{pod="p"}', "0+1x60")], "30m", {"pod": "p"}),
    "TunesmithDeploymentsUnsteady": (
        [(f'tunesmith_condition_changes_total{{{DEPLOYMENT},type="Ready",status="True",reason="Degraded"}}', "0+1x90")],
        "45m",
        {"namespace": "a"},
    ),
    "TunesmithGatewayErrors": (
        [
            (f'tunesmith_gateway_requests_total{{{GATEWAY},pod="p",code="200"}}', "0+80x60"),
            (f'tunesmith_gateway_requests_total{{{GATEWAY},pod="p",code="502"}}', "0+10x60"),
            (f'tunesmith_gateway_requests_total{{{GATEWAY},pod="q",code="0"}}', "0+10x60"),
        ],
        "20m",
        {"namespace": "a", "tunesmith_io_name": "chat"},
    ),
    "TunesmithGatewayRefusing": (
        [(f'tunesmith_gateway_refused_total{{{GATEWAY},pod="p"}}', "0+3x60")],
        "20m",
        {"namespace": "a", "tunesmith_io_name": "chat"},
    ),
}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def promtool(*arguments: str) -> str:
    tool = program(Paths.from_environment(), "promtool")
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rules_are_rules() -> None:
    assert f"{len(rules())} rules found" in promtool("check", "rules", str(RULES))


def test_every_alert_has_a_case_and_a_runbook_and_every_runbook_an_alert() -> None:
    names = {rule["alert"] for rule in alerts()}
    assert names == CASES.keys()
    assert names == {path.stem for path in RUNBOOKS.glob("Tunesmith*.md")}


def test_alerts_fire_when_they_should_and_no_others(tmp_path: Path) -> None:
    tests = []
    for name, (series, when, labels) in CASES.items():
        rule = next(rule for rule in alerts() if rule["alert"] == name)
        given = [{"series": one, "values": values} for one, values in series]
        if name != "TunesmithNoLeader":
            given.append(LEADING)
        fired = {"exp_labels": {**labels, **rule["labels"]}, "exp_annotations": {"summary": "said"}}
        checks: list[dict[str, Any]] = [{"eval_time": "0m", "alertname": name, "exp_alerts": []}]
        checks += [{"eval_time": when, "alertname": one, "exp_alerts": [fired] if one == name else []} for one in CASES]
        tests.append({"interval": "1m", "input_series": given, "alert_rule_test": checks})
    # The words of an alert, with its value in them, are not what is tested here.
    (tmp_path / "rules.yaml").write_text(re.sub(r"summary: .*\}$", "summary: said}", RULES.read_text(), flags=re.M))
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": tests}))
    promtool("test", "rules", str(tmp_path / "test.yaml"))


def test_an_installation_without_a_leader_is_seen_beside_one_that_has_one(tmp_path: Path) -> None:
    series = {("a", "p"): "0x30", ("a", "q"): "1x30", ("b", "p"): "0x30", ("b", "q"): "0x30"}
    given = [
        {"series": f'tunesmith_leader{{job="tunesmith",namespace="{namespace}",pod="{pod}"}}', "values": values}
        for (namespace, pod), values in series.items()
    ]
    [rule] = [rule for rule in alerts() if rule["alert"] == "TunesmithNoLeader"]
    labels = {"job": "tunesmith", "namespace": "b", "severity": "critical"}
    fired = {"exp_labels": labels, "exp_annotations": rule["annotations"]}
    check = {"eval_time": "10m", "alertname": rule["alert"], "exp_alerts": [fired]}
    tests = [{"interval": "1m", "input_series": given, "alert_rule_test": [check]}]
    (tmp_path / "test.yaml").write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": tests}))
    promtool("test", "rules", str(tmp_path / "test.yaml"))


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: str(alert["alert"]))
def test_an_alert_and_its_runbook_say_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["annotations"]["summary"]
    assert alert["labels"]["severity"] in {"warning", "critical"}
    text = (RUNBOOKS / f"{alert['alert']}.md").read_text()
    for part in ("**What it does to users.**", "**Where to look.**", "**What to do.**"):
        assert part in text


def names_of(registry: CollectorRegistry) -> set[str]:
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return {family.name + end for family in registry.collect() for end in suffixes.get(family.type, ("",))}


def exported() -> set[str]:
    """Names of the samples that the operator, the agents and the trainers export, and of recorded series."""
    assert metrics.RECONCILES
    assert client.REQUESTS
    trained = re.findall(r'^    "(\w+)": "', TRAINER.read_text(), re.M)
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    training = {f"tunesmith_training_{name}" for name in trained}
    return names_of(REGISTRY) | names_of(Metrics().registry) | names_of(Gateway().registry) | training | recorded


def queries() -> list[str]:
    boards = [json.loads(path.read_text()) for path in sorted((FILES / "dashboards").glob("*.json"))]
    shown = [target["expr"] for board in boards for panel in board["panels"] for target in panel["targets"]]
    return [rule["expr"] for rule in rules()] + shown


def test_every_query_uses_metrics_that_are_exported() -> None:
    used = {name for query in queries() for name in re.findall(r"tunesmith[_:][\w:]+", query)} - LABELS
    assert len(used) > 20
    assert sorted(used - exported()) == []


def test_every_query_can_be_parsed(tmp_path: Path) -> None:
    records = [{"record": f"x:{number}", "expr": query} for number, query in enumerate(queries())]
    path = tmp_path / "queries.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "x", "rules": records}]}))
    promtool("check", "rules", str(path))


def test_dashboards_are_three_with_panels_that_do_not_overlap() -> None:
    boards = [json.loads(path.read_text()) for path in (FILES / "dashboards").glob("*.json")]
    assert {board["uid"] for board in boards} == {"tunesmith-operator", "tunesmith-jobs", "tunesmith-serving"}
    for board in boards:
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
        assert len(set(places)) == len(places)
