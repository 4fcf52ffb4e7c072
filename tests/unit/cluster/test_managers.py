"""The objects of other projects' controller managers, as these need them outside the cluster."""

from pathlib import Path

import pytest
import yaml
from tunesmith_cluster import ClusterError, Paths, addons, components, credentials
from tunesmith_cluster.kueue import KUEUE
from tunesmith_cluster.lws import LWS
from tunesmith_cluster.managers import Manager

PATHS = Paths(cache=Path("/cache"), state=Path("/state"))
URL, CA = "https://127.0.0.1:9443", "Q0E="


def service(path: str) -> dict[str, object]:
    return {"service": {"name": "kueue-webhook-service", "namespace": "kueue-system", "path": path}}


RENDERED = [
    {"kind": "Deployment", "metadata": {"name": "kueue-controller-manager"}},
    {"kind": "APIService", "metadata": {"name": "v1beta2.visibility.kueue.x-k8s.io"}},
    {
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "workloads.kueue.x-k8s.io"},
        "spec": {"conversion": {"strategy": "Webhook", "webhook": {"clientConfig": service("/convert")}}},
    },
    {
        "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "kueue"},
        "webhooks": [{"name": "mjob.kb.io", "clientConfig": service("/mutate-batch-v1-job")}],
    },
    {
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "kueue-manager-rolebinding"},
        "subjects": [{"kind": "ServiceAccount", "name": "kueue-controller-manager", "namespace": "kueue-system"}],
    },
]


def test_what_runs_in_the_cluster_is_left_out_and_the_namespace_is_added() -> None:
    kinds = [item["kind"] for item in KUEUE.adapted(RENDERED, CA)]
    assert kinds == ["Namespace", "CustomResourceDefinition", "MutatingWebhookConfiguration", "ClusterRoleBinding"]


def test_the_api_server_asks_a_url_with_our_authority() -> None:
    _, kind, webhooks, _ = KUEUE.adapted(RENDERED, CA)
    assert kind["spec"]["conversion"]["webhook"]["clientConfig"] == {"url": f"{URL}/convert", "caBundle": CA}
    [webhook] = webhooks["webhooks"]
    assert webhook == {"name": "mjob.kb.io", "clientConfig": {"url": f"{URL}/mutate-batch-v1-job", "caBundle": CA}}


def test_the_rights_go_to_the_user_of_its_kubeconfig() -> None:
    *_, binding = KUEUE.adapted(RENDERED, CA)
    assert [subject["name"] for subject in binding["subjects"]] == [credentials.CLIENTS["kueue"].common_name]


@pytest.mark.parametrize("manager", components.MANAGERS, ids=lambda manager: manager.name)
def test_it_listens_where_its_configuration_says(manager: Manager) -> None:
    config = yaml.safe_load(manager.configuration(PATHS))
    said = {
        config["health"]["healthProbeBindAddress"],
        config["metrics"]["bindAddress"],
        f"{config['webhook']['host']}:{config['webhook']['port']}",
    }
    assert said == {f"{address}:{port}" for address, port in manager.service(PATHS).listens}


def test_kueue_manages_jobs_only_and_finds_its_certificate_in_an_etc_of_its_own() -> None:
    config = yaml.safe_load(KUEUE.configuration(PATHS))
    assert config["integrations"]["frameworks"] == ["batch/job"]
    assert config["webhook"]["certDir"] == "/state/kueue/etc/kueue/metrics/certs"
    assert "/state/kueue/etc" in KUEUE.service(PATHS).command
    assert LWS.service(PATHS).command[0].endswith("/lws")


def test_a_cluster_has_a_manager_once_it_was_added(tmp_path: Path) -> None:
    paths = Paths(cache=tmp_path, state=tmp_path)
    assert components.managers(paths) == []
    LWS.folder(paths).mkdir()
    assert components.managers(paths) == [LWS]
    assert components.managers(paths, [KUEUE]) == [KUEUE, LWS]


def test_a_kind_that_is_too_new_to_be_waited_for_is_waited_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []

    def kubectl(_: Paths, *arguments: str) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            raise ClusterError(".status.conditions accessor error: <nil> is of the type <nil>")

    monkeypatch.setattr(addons, "kubectl", kubectl)
    monkeypatch.setattr(addons.time, "sleep", lambda _: None)
    addons.establish(PATHS, ["queues.example.com"])
    assert calls == [("wait", "--for=condition=Established", "--timeout=60s", "crd/queues.example.com")] * 2
