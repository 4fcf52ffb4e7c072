"""The Applications of examples/argocd in the hands of Argo CD, in the order of this file: the operator's from its
installation to its removal, and a team's models meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from argocd.conftest import EXAMPLES, MODELS, OPERATOR, Argo, Repository, Watched, example
from integration.harness import claim, eventually
from unit.agent.builders import make, make_base, pair

JOB = "support-2026-01"
STORE = "tunesmith-store"
SMALL = {"requests": {"cpu": "10m"}, "limits": {"memory": "256Mi"}}
ENGINE = {"drainSeconds": 0, "shutdownTimeoutSeconds": 1}
WAVE = "argocd.argoproj.io/sync-wave"
IGNORED = [{"group": "tunesmith.io", "kind": "ModelDeployment", "jsonPointers": ["/spec/replicas"]}]


class Team:
    """A repository with the models of the example, small enough for this machine, and the Application of it."""

    def __init__(self, argo: Argo, folder: Path, training: str) -> None:
        self.argo, self.repository = argo, Repository(folder / "repository")
        self.folder = self.repository.folder / "examples" / "argocd" / "models"
        self.folder.mkdir(parents=True)
        self.revisions: list[str] = []
        store = claim(STORE)
        # With the training, its first user: until somebody uses it, Argo CD does not call a volume healthy. It outlives
        # the Application.
        keep = "Prune=false,Delete=false"
        store["metadata"]["annotations"] = {WAVE: "1", "argocd.argoproj.io/sync-options": keep}
        self.write("0-store", store)
        self.write("1-support", self.train("1-support", training))
        self.write("2-support-merged", self.edited("2-support-merged", model={"uri": "file:///behave/make"}))
        self.write("3-chat", self.edited("3-chat", replicas=1, engine=ENGINE))
        self.application = example("models", self.repository)
        self.application["metadata"]["finalizers"] = ["resources-finalizer.argocd.argoproj.io"]

    @contextmanager
    def applied(self) -> Iterator[Watched]:
        """Every state that the Application, just applied, goes through. In the end nothing of it is left."""
        self.commit()
        self.argo.apply(self.application)
        try:
            with self.argo.watched(MODELS) as watched:
                yield watched
        finally:
            if self.argo.own("get", "application", MODELS, "--ignore-not-found"):
                self.argo.delete(MODELS)

    def edited(self, name: str, **spec: Any) -> dict[str, Any]:
        """A resource of the example, with other values of some fields."""
        body: dict[str, Any] = yaml.safe_load((EXAMPLES / "models" / f"{name}.yaml").read_text())
        body["spec"] |= {"resources": SMALL, **spec}
        return body

    def train(self, name: str, behaviour: str) -> dict[str, Any]:
        data = [{"uri": "file:///data.jsonl"}]
        more: dict[str, Any] = {"training": {"maxSteps": 60, "globalBatchSize": 2}, "memory": {"check": "Disabled"}}
        return self.edited(name, model={"uri": f"file:///behave/{behaviour}"}, datasets=data, **more)

    def write(self, name: str, body: dict[str, Any]) -> None:
        (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(body))

    def change(self, name: str, **spec: Any) -> None:
        """Fields of a resource in the repository; None takes one away."""
        body = yaml.safe_load((self.folder / f"{name}.yaml").read_text())
        body["spec"] = {key: value for key, value in (body["spec"] | spec).items() if value is not None}
        self.write(name, body)

    def commit(self) -> str:
        self.revisions.append(self.repository.commit())
        if len(self.revisions) > 1:
            self.argo.refresh(MODELS)
        return self.revisions[-1]

    def store(self) -> Path:
        """The claim's folder on this machine."""
        volume = self.argo.models.get("pvc", STORE)["spec"]["volumeName"]
        [path] = self.argo.cluster.paths.volumes.glob(f"*{volume}*")
        return path


def exists(argo: Argo, kind: str, name: str) -> bool:
    return bool(argo.models("get", kind, name, "--ignore-not-found", "-o", "name"))


def test_the_operator_of_the_chart_becomes_synced_and_healthy(argo: Argo, platform: Watched) -> None:
    assert argo.status_of(OPERATOR, "Deployment", "tunesmith")["health"]["status"] == "Healthy"
    assert argo.status_of(OPERATOR, "CustomResourceDefinition", "finetunejobs.tunesmith.io")["status"] == "Synced"


def test_waves_follow_the_jobs_and_nothing_ever_drifts(argo: Argo, platform: Watched, tmp_path: Path) -> None:
    team = Team(argo, tmp_path, "steps-200")
    with team.applied() as watched:
        # The first wave: the training runs, and what is of later waves is not there.
        argo.wait_for(lambda: exists(argo, "ftj", JOB), MODELS)
        argo.models.wait("ftj", JOB, "Running")
        assert argo.health(MODELS, "FineTuneJob", JOB)[0] == "Progressing"
        assert argo.application(MODELS)["status"]["health"]["status"] == "Missing"  # the later waves
        assert not exists(argo, "mergejob", JOB)
        # The second begins when the training is done, the third when the merge is.
        argo.wait_for(lambda: exists(argo, "mergejob", JOB), MODELS)
        assert argo.models.condition("ftj", JOB)["reason"] == "Completed"
        argo.wait_for(lambda: exists(argo, "mdep", "chat"), MODELS)
        assert argo.models.condition("mergejob", JOB)["reason"] == "Completed"
        argo.wait(MODELS, "Healthy", team.revisions[-1])
        for kind, name in (("FineTuneJob", JOB), ("MergeJob", JOB), ("ModelDeployment", "chat")):
            assert argo.health(MODELS, kind, name)[0] == "Healthy"
        # Adapters come, with a base that has the layers they are for, and one of them cannot be loaded.
        make_base(team.store() / "base")
        make(team.store() / "polite", pair())
        base, polite = {"uri": f"pvc://{STORE}/base"}, {"name": "polite", "uri": f"pvc://{STORE}/polite"}
        team.change("3-chat", model=base, adapters=[polite])
        argo.wait(MODELS, "Healthy", team.commit())
        assert argo.models.condition("mdep", "chat", "AdaptersReady")["status"] == "True"
        team.change("3-chat", adapters=[polite, {"name": "gone", "uri": f"pvc://{STORE}/gone"}])
        argo.wait(MODELS, "Degraded", team.commit())
        assert argo.health(MODELS, "ModelDeployment", "chat")[1].startswith("AdapterFailed: ")
        team.change("3-chat", adapters=[])
        argo.wait(MODELS, "Healthy", team.commit())
        # Nobody wrote to a spec but the commits: no self-heal found anything to undo.
        generations = {kind: argo.models.get(kind, JOB)["metadata"]["generation"] for kind in ("ftj", "mergejob")}
        assert generations == {"ftj": 1, "mergejob": 1}
        assert argo.models.get("mdep", "chat")["metadata"]["generation"] == len(team.revisions)
    assert watched.drifts() == []


@pytest.mark.parametrize("replicas", ["not in the repository", "ignored"])
def test_what_an_autoscaler_writes_stays(argo: Argo, platform: Watched, tmp_path: Path, replicas: str) -> None:
    team = Team(argo, tmp_path, "succeed")
    if replicas == "ignored":
        team.application["spec"]["ignoreDifferences"] = IGNORED
        team.application["spec"]["syncPolicy"]["syncOptions"] += ["RespectIgnoreDifferences=true"]
    else:
        team.change("3-chat", replicas=None)
    with team.applied() as watched:
        argo.wait(MODELS, "Healthy", team.revisions[-1])
        argo.models("scale", "mdep/chat", "--replicas=2")
        argo.models.wait_for_pods(2)
        argo.wait(MODELS, "Healthy", team.revisions[-1])
        # A commit that changes another field of it leaves them alone, too.
        team.change("3-chat", engine={**ENGINE, "drainSeconds": 1})
        argo.wait(MODELS, "Healthy", team.commit())
        found = argo.models.get("mdep", "chat")["spec"]
        assert (found["replicas"], found["engine"]["drainSeconds"]) == (2, 1)
    assert watched.drifts() == []


def test_what_people_change_by_hand_is_undone_once(argo: Argo, platform: Watched, tmp_path: Path) -> None:
    team = Team(argo, tmp_path, "succeed")
    with team.applied() as watched:
        argo.wait(MODELS, "Healthy", team.revisions[-1])
        change = '{"spec": {"engine": {"drainSeconds": 7}}}'
        argo.models("patch", "mdep", "chat", "--type=merge", f"--patch={change}")
        eventually(
            lambda: argo.models.get("mdep", "chat")["spec"]["engine"]["drainSeconds"] == 0,
            lambda: argo.describe(MODELS),
        )
        argo.wait(MODELS, "Healthy", team.revisions[-1])
    assert watched.drifts() == ["ModelDeployment/chat is OutOfSync"]


def test_a_training_that_fails_degrades_the_application_with_its_message(
    argo: Argo, platform: Watched, tmp_path: Path
) -> None:
    team = Team(argo, tmp_path, "bad-data")
    team.change("1-support", nodes=2)  # the second of them finds the row
    with team.applied() as watched:
        argo.wait(MODELS, "Degraded", team.revisions[-1], sync="OutOfSync")  # the later waves are not there
        status, message = argo.health(MODELS, "FineTuneJob", JOB)
        assert status == "Degraded"
        assert "row 17" in message
        assert not exists(argo, "mergejob", JOB)
        # Mended as docs/gitops.md says: by a new name. The old one is pruned.
        mended = team.train("1-support", "succeed")
        mended["metadata"]["name"] = "support-2026-02"
        team.write("1-support", mended)
        team.change("2-support-merged", adapters=[{"fineTuneJobRef": {"name": "support-2026-02"}}])
        argo.wait(MODELS, "Healthy", team.commit())
        assert argo.models.names("ftj") == ["support-2026-02"]
    assert watched.drifts() == []


def test_an_application_that_is_deleted_leaves_the_store_and_nothing_else(
    argo: Argo, platform: Watched, tmp_path: Path
) -> None:
    team = Team(argo, tmp_path, "make")
    with team.applied():
        argo.wait(MODELS, "Healthy", team.revisions[-1])
        made = argo.models.get("ftj", JOB)["status"]["artifact"]["uri"]
        argo.delete(MODELS)
        ours = "finetunejob,mergejob,modeldeployment,job,pod,deployment,secret"
        eventually(lambda: not argo.models("get", ours, "-o", "name"), lambda: argo.models("get", ours))
        assert argo.models.get("pvc", STORE)["status"]["phase"] == "Bound"
        assert (team.store() / made.removeprefix(f"pvc://{STORE}/") / "manifest.json").exists()


def test_the_operator_was_in_sync_all_the_time(platform: Watched) -> None:
    assert len(platform.seen) > 1
    assert platform.drifts() == []


def test_the_operator_s_application_leaves_kinds_and_resources(argo: Argo, platform: Watched) -> None:
    argo.models.apply({"apiVersion": "tunesmith.io/v1alpha1", "kind": "ModelDeployment", "metadata": {"name": "kept"},
                       "spec": {"model": {"uri": "file:///model"}, "replicas": 0}})  # fmt: skip
    patch = '{"metadata": {"finalizers": ["resources-finalizer.argocd.argoproj.io"]}}'
    argo.own("patch", "application", OPERATOR, "--type=merge", f"--patch={patch}")
    argo.own("delete", "application", OPERATOR, "--timeout=120s")
    assert not argo.own("get", "deployment", "-n", "tunesmith-system", "-o", "name")
    assert exists(argo, "mdep", "kept")
