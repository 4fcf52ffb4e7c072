"""What Argo CD sees of resources through their whole lives: their health, and never a difference from the repository.

TUNESMITH_CAPTURE=1 also writes what the API server had to the health checks' test data.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from fleet.conftest import STORE, Fleet, cluster
from gitops.support import KINDS, folder, health
from integration.harness import IMAGE, Kubectl, custom, eventually, infer, own_namespace, step_reached, train
from tunesmith_cluster import Cluster
from tunesmith_cluster.environments import ROOT
from unit.agent.builders import make_base

__all__ = ["cluster"]

MANAGER = "argocd-controller"
TRACKING = {"app.kubernetes.io/instance": "models", "argocd.argoproj.io/instance": "models", "team": "nlp"}
CAPTURE = bool(os.environ.get("TUNESMITH_CAPTURE"))


class Repository:
    """Manifests as Argo CD applies them, and compares them: by server-side apply."""

    def __init__(self, kubectl: Kubectl) -> None:
        self.kubectl = kubectl
        self.manifests: dict[tuple[str, str], dict[str, Any]] = {}

    def sync(self, *bodies: dict[str, Any]) -> None:
        for body in bodies:
            own = copy.deepcopy(body)
            own["metadata"] |= {"labels": TRACKING, "annotations": {"argocd.argoproj.io/sync-wave": "1"}}
            self.manifests[body["kind"], body["metadata"]["name"]] = own
            self.kubectl("apply", "--server-side", f"--field-manager={MANAGER}", "-f", "-", stdin=own)

    def change(self, kind: str, name: str, **spec: Any) -> None:
        """A commit that changes some fields."""
        body = copy.deepcopy(self.manifests[kind, name])
        body["spec"] |= spec
        self.sync(body)

    def diff(self) -> str:
        """What Argo CD would show; empty where all is in sync."""
        for body in self.manifests.values():
            command = ["diff", "--server-side", f"--field-manager={MANAGER}", "-f", "-"]
            done = subprocess.run(
                [self.kubectl.binary, "-n", self.kubectl.namespace, *command],
                input=json.dumps(body),
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                return done.stdout + done.stderr
        return ""

    def is_(self, kind: str, name: str, expected: str, case: str) -> None:
        """A resource's health now; nothing differs."""
        live = eventually(
            lambda: body if health(body := self.kubectl.get(kind, name))[0] == expected else None,
            lambda: f"{name}: wanted {expected}, found {health(self.kubectl.get(kind, name))}",
        )
        # A status that is written between kubectl's two looks would be a difference, too.
        eventually(lambda: not self.diff(), self.diff)
        if CAPTURE:
            capture(live, case)


def capture(live: dict[str, Any], case: str) -> None:
    """Write the resource and what is said of it to the test data."""
    live = json.loads(json.dumps(live).replace(live["metadata"]["namespace"], "models"))
    live["metadata"] = {key: live["metadata"][key] for key in ("generation", "name", "namespace", "labels")}
    text = yaml.safe_dump(live, sort_keys=False, allow_unicode=True, width=120)
    place = folder(live["kind"])
    (place / "testdata").mkdir(exist_ok=True)
    (place / "testdata" / f"{case}.yaml").write_text(text, encoding="utf-8")
    status, message = health(live)
    file = place / "health_test.yaml"
    tests = yaml.safe_load(file.read_text(encoding="utf-8"))["tests"] if file.exists() else []
    path = f"testdata/{case}.yaml"
    tests = [one for one in tests if one["inputPath"] != path]
    tests.append({"healthStatus": {"status": status, "message": message}, "inputPath": path})
    file.write_text(yaml.safe_dump({"tests": tests}, sort_keys=False, allow_unicode=True, width=120), encoding="utf-8")


@pytest.fixture
def repository(cluster: Cluster) -> Any:
    with own_namespace(cluster, "gitops") as kubectl:
        yield Repository(kubectl)


def job(name: str, behaviour: str, **spec: Any) -> dict[str, Any]:
    own = {"podTemplate": {"image": IMAGE}, "memory": {"check": "Disabled"}}
    return train(name, behaviour, **own, **spec)


def test_nothing_of_ours_ever_differs_from_the_repository(
    cluster: Cluster, repository: Repository, tmp_path: Path
) -> None:
    kubectl = repository.kubectl
    base = {"uri": f"{STORE}/base"}
    resources = {"requests": {"cpu": "10m"}, "limits": {"memory": "256Mi"}}
    engine = {"drainSeconds": 0, "shutdownTimeoutSeconds": 1}
    merged = custom(
        "MergeJob",
        "merged",
        {
            "model": {"uri": "file:///behave/succeed"},
            "adapters": [{"fineTuneJobRef": {"name": "tuned"}}],
            "podTemplate": {"image": IMAGE},
        },
    )
    asked = infer("asked", "tuned")
    asked["spec"] |= {"podTemplate": {"image": IMAGE}}
    chat = custom("ModelDeployment", "chat", {"model": base, "engine": engine, "resources": resources})
    fleet = Fleet(cluster, kubectl, tmp_path / "operator.log")
    repository.sync(merged, asked, chat)
    assert health(kubectl.get("mergejob", "merged"))[0] == "Progressing"
    with fleet.operator():
        kubectl.wait("mergejob", "merged", "WaitingForReference")
        repository.is_("MergeJob", "merged", "Progressing", "waiting")
        repository.is_("InferenceJob", "asked", "Progressing", "waiting")
        kubectl.wait("mdep", "chat", "WaitingForInput", "Ready")
        repository.is_("ModelDeployment", "chat", "Progressing", "waiting")
        training = {"maxSteps": 60, "globalBatchSize": 2}
        repository.sync(job("tuned", "steps-300", training=training), job("bad", "bad-data", nodes=2))
        step_reached(kubectl, "tuned", 2)
        repository.is_("FineTuneJob", "tuned", "Progressing", "running")
        repository.is_("FineTuneJob", "bad", "Degraded", "failed")
        repository.change("FineTuneJob", "tuned", suspend=True)
        repository.is_("FineTuneJob", "tuned", "Suspended", "suspended")
        make_base(fleet.store / "base")
        repository.is_("ModelDeployment", "chat", "Healthy", "healthy")
        repository.change("FineTuneJob", "tuned", suspend=False)
        kubectl.wait("ftj", "tuned", "Completed")
        repository.is_("FineTuneJob", "tuned", "Healthy", "succeeded")
        repository.is_("MergeJob", "merged", "Healthy", "succeeded")
        repository.is_("InferenceJob", "asked", "Healthy", "succeeded")
        repository.change("ModelDeployment", "chat", adapters=[{"name": "a", "uri": f"{STORE}/base"}])
        repository.is_("ModelDeployment", "chat", "Degraded", "adapter-failed")
        repository.change("ModelDeployment", "chat", adapters=[], replicas=0)
        repository.is_("ModelDeployment", "chat", "Healthy", "scaled-to-zero")
    children = [
        item
        for kind in ("job", "pod", "deployment", "service", "configmap", "secret")
        for item in kubectl.list(kind)
        if item["metadata"].get("ownerReferences")
    ]
    assert {item["kind"] for item in children} >= {"Job", "Pod", "Deployment", "Service", "ConfigMap", "Secret"}
    for child in children:
        assert not TRACKING.keys() & child["metadata"].get("labels", {}).keys()
        assert not [key for key in child["metadata"].get("annotations", {}) if "argocd" in key]
    for kind, name in repository.manifests:
        live = json.loads(kubectl("get", kind, name, "-o", "json", "--show-managed-fields"))
        owners = {(one["manager"], one.get("subresource", "")) for one in live["metadata"]["managedFields"]}
        assert owners == {(MANAGER, ""), ("tunesmith-status", "status")}


def test_the_crds_are_as_the_api_server_stores_them(cluster: Cluster) -> None:
    """What it leaves out, such as empty `properties`, would be a difference for ever to Argo CD's own diff."""
    files = sorted((ROOT / "crds").glob("*.yaml"))
    assert len(files) == len(KINDS)
    for file in files:
        own = yaml.safe_load(file.read_text(encoding="utf-8"))
        command = [cluster.binary("kubectl"), "get", "crd", own["metadata"]["name"], "-o", "json"]
        live = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["spec"]
        assert live.pop("conversion") == {"strategy": "None"}
        assert live == own["spec"]
