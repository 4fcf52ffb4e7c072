"""Which cluster is used, with which images, and what applies to it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from tunesmith_cluster import Cluster, Paths, environments, release
from tunesmith_cluster.environments import ROOT
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.processes import Identity
from tunesmith_cluster.progress import Reporter
from tunesmith_cluster.quickstart import main, target
from tunesmith_cluster.quickstart.kubectl import Kubectl
from tunesmith_cluster.quickstart.stages import Stages, duration
from tunesmith_cluster.release import Release
from tunesmith_cluster.workloads import Images, split_tag

QUIET = Reporter(Console(file=io.StringIO()))


@pytest.fixture(autouse=True)
def _no_cluster_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is broken: no test here may start or stop the cluster that somebody uses."""
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TUNESMITH_CLUSTER_STATE", str(tmp_path / "state"))
    for name in ("up", "down"):
        monkeypatch.setattr(Cluster, name, lambda *_, **__: pytest.fail("a test would change this machine's cluster"))


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The programs that are there."""
    there: set[str] = set()
    monkeypatch.setattr(target.shutil, "which", lambda name: f"/bin/{name}" if name in there else None)
    monkeypatch.setattr(target, "_docker_answers", lambda: "docker" in there)
    monkeypatch.setenv("TUNESMITH_CLUSTER_STATE", "/nowhere/state")
    return there


@pytest.mark.parametrize(
    ("programs", "kubeconfig", "kind"),
    [
        (set(), None, target.Local),
        ({"docker"}, None, target.Local),
        ({"kind"}, None, target.Local),
        ({"docker", "kind"}, None, target.Kind),
        ({"docker", "kind"}, "", target.Kind),
        ({"docker", "kind"}, "/home/me/kubeconfig", target.Given),
        ({"docker", "kind"}, "/nowhere/state/kubeconfig/admin.yaml", target.Local),
    ],
)
def test_choice(tools: set[str], programs: set[str], kubeconfig: str | None, kind: type[target.Target]) -> None:
    tools |= programs
    environ = {} if kubeconfig is None else {"KUBECONFIG": kubeconfig}
    assert type(target.choose(QUIET, environ)) is kind


def test_several_kubeconfigs_are_one_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", "/a:/b")
    with pytest.raises(ClusterError, match="--flatten"):
        _ = target.choose(QUIET).kubeconfig


@pytest.mark.parametrize(
    ("name", "repository", "tag"),
    [
        ("app", "app", "latest"),
        ("app:1", "app", "1"),
        ("registry:5000/team/app", "registry:5000/team/app", "latest"),
        ("registry:5000/team/app:1", "registry:5000/team/app", "1"),
    ],
)
def test_split_tag(name: str, repository: str, tag: str) -> None:
    assert split_tag(name) == (repository, tag)


def test_images_of_the_environment() -> None:
    digest = f"sha256:{'a' * 64}"
    assert target.image_values({}) == {}
    assert target.image_values({"TUNESMITH_ENGINE_IMAGE": f"r.example.com/vllm:1@{digest}"}) == {
        "engineImage.repository": "r.example.com/vllm",
        "engineImage.tag": "1",
        "engineImage.digest": digest,
    }


def test_values_of_loaded_images() -> None:
    values = Images("tunesmith-operator:123456789012", "t:2", "e:3").helm_values()
    assert values["operatorImage.repository"] == "tunesmith-operator"
    assert values["operatorImage.tag"] == "123456789012"
    assert len(values) == 6


def test_kinds_storage_patch_is_one() -> None:
    patch = yaml.safe_load(target.KIND_STORAGE_PATCH.read_text(encoding="utf-8"))
    assert json.loads(patch["data"]["config.json"]) == {
        "nodePathMap": [],
        "sharedFileSystemPath": "/var/local-path-provisioner",
    }
    assert [node["role"] for node in yaml.safe_load(target.KIND_CONFIG.read_text())["nodes"]] == ["control-plane"]


class Recorder(Kubectl):
    """A kubectl that only takes notes."""

    __slots__ = ("calls",)

    def _run(self, arguments: Sequence[str], stdin: str | None) -> subprocess.CompletedProcess[str]:
        calls.append((list(arguments), stdin))
        answer = json.dumps({"spec": {"clusterIP": "10.0.0.7"}}) if "service" in arguments else ""
        return subprocess.CompletedProcess([], 0, answer, "")


calls: list[tuple[list[str], str | None]] = []
RECORDER = Recorder(Path("kubectl"), Path("config"))


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


def test_the_examples_are_applied_as_they_are() -> None:
    quickstart = main.Quickstart(main.EXAMPLES)
    quickstart._apply(RECORDER, "default", None)
    assert calls == [(["apply", f"--filename={main.EXAMPLES}", "--namespace=default"], None)]


def test_a_registrys_trainer_image_takes_the_place_of_the_examples_own() -> None:
    main.Quickstart(main.EXAMPLES)._apply(RECORDER, "default", "r.example.com/trainer:1")
    ((_, text),) = calls
    assert text is not None
    applied = [item for item in yaml.safe_load_all(text) if item]
    assert len(applied) == len(main.read(main.EXAMPLES))
    (job,) = [item for item in applied if item["kind"] == "Job"]
    assert job["spec"]["template"]["spec"]["containers"][0]["image"] == "r.example.com/trainer:1"


def test_jobs_that_cannot_be_changed_are_named() -> None:
    said = (
        'for: "04.yaml": error when patching "04.yaml": FineTuneJob.tunesmith.io "a" is invalid: spec: Invalid value: '
        "the spec of a FineTuneJob cannot be changed: create another job with the new settings\n"
        'The Job "base-model" is invalid: spec.template: Invalid value: {"x": 1}: field is immutable\n'
    )
    assert main.refused_changes(said) == ["finetunejob/a", "job/base-model"]
    assert main.refused_changes('FineTuneJob.tunesmith.io "a" is invalid: spec.nodes: must be positive') == []


@pytest.mark.parametrize(
    ("more", "passes"), [("", True), ('\nError from server (Forbidden): jobs "base-model" is forbidden', False)]
)
def test_down_goes_on_where_the_kinds_were_never_installed(
    monkeypatch: pytest.MonkeyPatch, more: str, passes: bool
) -> None:
    said = (
        'resource mapping not found for name: "chat" namespace: "" from "07-chat.yaml": no matches for kind '
        '"ModelDeployment" in version "tunesmith.io/v1alpha1"\nensure CRDs are installed first'
    )
    refused = subprocess.CompletedProcess([], 1, "", said + more)
    monkeypatch.setattr(Recorder, "_run", lambda *_: refused)
    with nullcontext() if passes else pytest.raises(ClusterError, match="forbidden"):
        main.Quickstart(main.EXAMPLES)._delete(RECORDER, "default")


def test_a_service_is_reached_by_its_cluster_address() -> None:
    with main.reachable(RECORDER, "http://chat.default.svc/v1", direct=True) as address:
        assert address == "http://10.0.0.7/v1"


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="no resource of tunesmith's kinds"):
        main.read(tmp_path)


def test_stages() -> None:
    stages = Stages(QUIET)
    with stages.stage("first"):
        pass
    stages.add("second", None)
    output = io.StringIO()
    Console(file=output, width=80).print(stages.table())
    assert "was there already" in output.getvalue()
    assert [duration(3.21), duration(125)] == ["3.2 s", "2 min 5 s"]


def test_helm_runs_only_where_something_differs(tmp_path: Path) -> None:
    log = tmp_path / "log"
    helm = tmp_path / "helm"
    helm.write_text(
        f"""#!/bin/sh
case "$*" in
  *version*) echo v4.2.4 ;;
  *status*) cat {tmp_path}/status 2>/dev/null ;;
  *) echo "$@" >> {log} ;;
esac
"""
    )
    helm.chmod(0o755)
    installed = Release(helm, Path("config"))
    assert installed.install({"workers": "1"})
    command = log.read_text()
    assert "--set-string=workers=1" in command
    description = f"chart and values {release.fingerprint(release.CHART, {'workers': '1'}, ())}"
    assert description in command
    (tmp_path / "status").write_text(json.dumps({"info": {"status": "deployed", "description": description}}))
    assert not installed.install({"workers": "1"})
    assert installed.install({"workers": "2"})
    (tmp_path / "status").write_text(json.dumps({"info": {"status": "failed", "description": description}}))
    assert installed.install({"workers": "1"})


def test_what_a_killed_helm_left_is_told_with_what_to_do(tmp_path: Path) -> None:
    """Helm itself says only that another operation is in progress, for ever."""
    helm = tmp_path / "helm"
    helm.write_text('#!/bin/sh\necho \'{"info": {"status": "pending-install", "description": "x"}}\'\n')
    helm.chmod(0o755)
    with pytest.raises(ClusterError, match=r"is pending-install.*\n.*helm .* uninstall tunesmith"):
        Release(helm, Path("config")).install({})


def test_who_is_not_root_is_told_so_before_anything_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[object] = []
    monkeypatch.setattr(target.environments, "ensure", lambda *given: installed.append(given))
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ClusterError, match="run this with sudo"):
        target.Local(Cluster(), QUIET).start()
    assert installed == []


def script(path: Path, log: Path, says: str = "", code: int = 0) -> Path:
    """A program that notes down its name and arguments, says something on stderr, and ends."""
    path.write_text(f'#!/bin/sh\necho "${{0##*/}} $*" >> {log}\necho "{says}" >&2\nexit {code}\n')
    path.chmod(0o755)
    return path


def test_the_kubectl_of_the_variable_is_used_from_the_first_look_at_a_given_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("TUNESMITH_KUBECTL", str(script(tmp_path / "own", log)))
    target.Given(Cluster(), QUIET).start()
    assert log.read_text().startswith("own --kubeconfig=")


def test_the_kubectl_of_the_variable_is_used_with_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, programs = tmp_path / "log", tmp_path / "bin"
    programs.mkdir()
    script(programs / "kind", log)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(target, "_docker_memory", lambda: 16e9)
    monkeypatch.setenv("TUNESMITH_KUBECTL", str(script(tmp_path / "own", log)))
    target.Kind(Cluster(), QUIET).start()
    assert "own --kubeconfig=" in log.read_text()


def test_too_little_memory_for_kind_is_told_before_a_cluster_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, programs = tmp_path / "log", tmp_path / "bin"
    programs.mkdir()
    script(programs / "kind", log)
    (programs / "docker").write_text("#!/bin/sh\necho 2000000000\n")
    (programs / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("TUNESMITH_KUBECTL", str(script(tmp_path / "own", log)))
    with pytest.raises(ClusterError, match=r"memory: 2\.0 GB are available"):
        target.Kind(Cluster(), QUIET).start()
    assert "create" not in log.read_text()


def test_without_a_kubectl_no_kind_cluster_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, programs = tmp_path / "log", tmp_path / "bin"
    programs.mkdir()
    script(programs / "kind", log)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.delenv("TUNESMITH_KUBECTL", raising=False)
    with pytest.raises(ClusterError, match="install it, or set TUNESMITH_KUBECTL"):
        target.Kind(Cluster(), QUIET).start()
    assert not log.exists()


def test_a_variable_that_names_no_program_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNESMITH_KUBECTL", "/nowhere/kubectl")
    with pytest.raises(ClusterError, match="TUNESMITH_KUBECTL is /nowhere/kubectl, which is no program: correct it"):
        target.Given(Cluster(), QUIET).tool("kubectl")


def test_a_given_cluster_that_does_not_answer_is_told_in_kubectls_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubectl = script(tmp_path / "own", tmp_path / "log", "connection refused", 1)
    monkeypatch.setenv("KUBECONFIG", "/my/config")
    monkeypatch.setenv("TUNESMITH_KUBECTL", str(kubectl))
    with pytest.raises(ClusterError, match=r"KUBECONFIG \(/my/config\) cannot be used.* connection refused"):
        target.Given(Cluster(), QUIET).start()


UV = """#!/bin/sh
[ "$1" = --version ] && echo uv 0.13.9 && exit
case "$*" in *trainer*) {trainer} ;; esac
mkdir -p "$UV_PROJECT_ENVIRONMENT"
"""


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], target.Local]:
    """The local cluster of a machine that has all it needs, where uv does what is given for the trainer's packages."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(target.requirements, "require", lambda *_, **__: None)
    monkeypatch.setattr(Cluster, "require_ports", lambda _: None)

    def make(trainer: str) -> target.Local:
        (tmp_path / "uv").write_text(UV.format(trainer=trainer))
        (tmp_path / "uv").chmod(0o755)
        return target.Local(Cluster(Paths(tmp_path / "cache", tmp_path / "state")), QUIET)

    return make


def test_cluster_and_packages_are_made_at_the_same_time(
    local: Callable[[str], target.Local], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up = tmp_path / "up"
    monkeypatch.setattr(Cluster, "up", lambda _: up.touch())
    one = local(f"while ! [ -e {up} ]; do sleep 0.05; done")
    one.start()
    for environment in environments.ENVIRONMENTS.values():
        assert (environments.folder(one.cluster.paths, environment) / environments.DONE).exists()


def test_a_cluster_that_does_not_start_is_told_at_once_and_ends_the_download(
    local: Callable[[str], target.Local], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = tmp_path / "began"

    def up(_: Cluster) -> None:
        while not began.exists():
            time.sleep(0.02)
        raise ClusterError("etcd died")

    monkeypatch.setattr(Cluster, "up", up)
    one = local(f"echo $$ > {began}.pid; mv {began}.pid {began}; exec sleep 100")
    started = time.monotonic()
    with pytest.raises(ClusterError, match="etcd died"):
        one.start()
    while Identity.of(int(began.read_text())):  # ended, but not gone at once
        assert time.monotonic() - started < 60
        time.sleep(0.02)


def test_packages_that_cannot_be_installed_are_told_with_the_reason(
    local: Callable[[str], target.Local], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cluster, "up", lambda _: None)
    one = local("echo 'error: Failed to download torch'; echo '  cause: dns error'; exit 2")
    with pytest.raises(ClusterError) as told:
        one.start()
    said = str(told.value).splitlines()
    assert said[0].startswith("installing the trainer's packages failed: the package index cannot be reached: see that")
    assert said[1] == "error: Failed to download torch"


def test_without_a_network_nothing_long_begins(
    local: Callable[[str], target.Local], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    monkeypatch.setattr(Cluster, "up", lambda _: begun.append("up"))
    one = local("")
    (tmp_path / "uv").write_text('#!/bin/sh\n[ "$1" = --version ] && echo uv 0.13.9 && exit\necho dns error\nexit 2\n')
    with pytest.raises(ClusterError, match="the operator's packages failed: the package index cannot be reached"):
        one.start()
    assert begun == []


def test_what_the_machine_lacks_is_told_before_anything_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[object] = []
    monkeypatch.setattr(target.environments, "ensure", lambda *given: installed.append(given))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(Cluster, "require_ports", lambda _: None)
    monkeypatch.setattr(Cluster, "is_started", lambda _: False)
    monkeypatch.setattr(target.requirements, "available_memory", lambda: 1e9)
    with pytest.raises(ClusterError, match=r"memory: 1\.0 GB are available"):
        target.Local(Cluster(), QUIET).start()
    assert installed == []


def test_no_operator_folder_shadows_the_standard_library() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
