"""What the chart renders, by value."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from chart.support import CHART, NAMESPACE, Refused, Render, one, read
from chart.values_matrix import DIGEST, MATRIX, REFUSED
from tunesmith.api.base import URI_PATTERN
from tunesmith.api.kinds import JOBS, MODELS
from tunesmith.children.gateway import gateway_labels
from tunesmith.children.meta import KIND_LABEL, Owner
from tunesmith.children.serving import pod_labels
from tunesmith.client.diagnosis import OLDEST, OPERATOR
from tunesmith.console import settings as console_settings
from tunesmith.openai_api import catalog
from tunesmith.openai_api import settings as openai_settings
from tunesmith.serving.contract import AGENT_PORT, ENGINE_PORT
from tunesmith.settings import load
from tunesmith.training.report import PORT
from tunesmith_cluster.environments import ROOT

VALIDATED_AGAINST = "1.36"
# Values that are passed on as they are: what is in them is the API's.
FREE = {"resources", "console.resources", "openaiApi.resources", "affinity", "metrics.dashboards.labels"}


def test_lint(helm: Callable[..., str]) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART))


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_every_manifest_is_valid(render: Render, values: dict[str, Any]) -> None:
    manifests = render(values)
    names = [(m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]) for m in manifests]
    assert len(set(names)) == len(names)
    for manifest in manifests:
        # CRDs are checked by the real API server elsewhere; Prometheus operator's kinds have their own schemas.
        if manifest["kind"] != "CustomResourceDefinition" and "monitoring.coreos.com" not in manifest["apiVersion"]:
            kubernetes_validate.validate(manifest, VALIDATED_AGAINST, strict=True)


@pytest.mark.parametrize(("values", "word"), REFUSED.values(), ids=REFUSED)
def test_values_are_checked(render: Render, values: dict[str, Any], word: str) -> None:
    with pytest.raises(Refused, match=word):
        render(values)


def test_every_value_has_a_comment() -> None:
    previous = ""
    for line in (CHART / "values.yaml").read_text(encoding="utf-8").splitlines():
        indent = len(line) - len(line.lstrip())
        opens_a_group = line.endswith(":") and not line.startswith("  ")
        is_value = line.strip() and not line.lstrip().startswith("#") and indent <= 4 and not opens_a_group
        inside = indent > 0 and previous.strip().startswith(("requests:", "limits:", "cpu:"))
        if is_value and not inside and line.split(":")[0].strip() not in {"requests", "limits", "service"}:
            assert previous.lstrip().startswith("#"), f"values.yaml: no comment above {line!r}"
        previous = line


def test_the_schema_has_no_hole() -> None:
    """Every object says which keys it takes, or that it is a map of text or numbers."""
    schema = read(CHART / "values.schema.json")
    of_helm = schema["properties"].pop("global")  # what a parent chart puts there is not ours to know

    def walk(node: Any, path: str) -> None:
        if isinstance(node, list):
            for number, child in enumerate(node):
                walk(child, f"{path}[{number}]")
        if not isinstance(node, dict):
            return
        if node.get("type") == "object":
            more = node.get("additionalProperties")
            assert more is False or more, f"{path} takes any key"
            assert more is not True, f"{path} takes any key"
        for key, child in node.items():
            walk(child, f"{path}.{key}")

    assert of_helm["type"] == "object"
    walk(schema, "")


def test_values_schema_and_templates_know_the_same_values() -> None:
    schema, values = read(CHART / "values.schema.json"), read(CHART / "values.yaml")

    def of_schema(node: dict[str, Any], path: str) -> Iterator[str]:
        target = node.get("$ref", "").removeprefix("#/definitions/")
        found = schema["definitions"][target] if target else node
        for key, child in found.get("properties", {}).items():
            if (path, key) != ("", "global") and path.removeprefix(".") not in FREE:
                yield from of_schema(child, f"{path}.{key}")
                yield f"{path}.{key}".removeprefix(".")

    def of_values(node: Any, path: str) -> Iterator[str]:
        for key, child in node.items() if isinstance(node, dict) and path.removeprefix(".") not in FREE else ():
            yield from of_values(child, f"{path}.{key}")
            yield f"{path}.{key}".removeprefix(".")

    known = set(of_values(values, ""))
    assert known == set(of_schema(schema, ""))
    templates = "".join(path.read_text() for path in (CHART / "templates").glob("*.*"))
    templates = templates.replace("$policy.", ".Values.networkPolicy.")
    used = set(re.findall(r"\.Values\.([\w.]+\w)", templates))
    assert used <= known
    images = {"operatorImage", "trainerImage", "engineImage"}  # handed to a helper as a whole
    whole = {value for value in known if value in used | images or value.rpartition(".")[0] in used & FREE | images}
    inner = {value.rpartition(".")[0] for value in known if "." in value}
    assert known - whole - inner == set()


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_no_variable_is_given_twice_and_ports_stay_those_of_the_probes(render: Render, values: dict[str, Any]) -> None:
    schema = read(CHART / "values.schema.json")
    refused = set(schema["properties"]["extraEnv"]["items"]["properties"]["name"]["not"]["enum"])
    own = set(environment(render(values))) - {item["name"] for item in values.get("extraEnv", ())}
    assert own | {"TUNESMITH_HEALTH_PORT", "TUNESMITH_METRICS_PORT"} <= refused


def test_a_model_of_the_openai_api_may_be_wherever_that_of_a_job_may_be() -> None:
    schema = read(CHART / "values.schema.json")
    uri = schema["properties"]["openaiApi"]["properties"]["models"]["additionalProperties"]["properties"]["uri"]
    assert uri["pattern"] == URI_PATTERN


def test_no_pod_names_a_user_where_the_cluster_chooses_it(render: Render) -> None:
    """OpenShift's SCC restricted-v2 refuses a user that is not of the namespace's range."""
    more = {"console": {"enabled": True}, "openaiApi": {"enabled": True, "namespaces": ["team-a"]}}
    for fixed in (True, False):
        manifests = render({"fixedUser": fixed, **more})
        contexts = [m["spec"]["template"]["spec"]["securityContext"] for m in manifests if m["kind"] == "Deployment"]
        assert len(contexts) == 3
        for context in contexts:
            assert context["runAsNonRoot"] is True
            assert (context.keys() & {"runAsUser", "runAsGroup", "fsGroup"} != set()) is fixed
        assert load(environment(manifests)).fixed_user is fixed


def test_resources_of_console_and_openai_api_are_values(render: Render) -> None:
    wanted = {"limits": {"memory": "1Gi"}}
    manifests = render(
        {
            "console": {"enabled": True, "resources": wanted},
            "openaiApi": {"enabled": True, "namespaces": ["team-a"], "resources": wanted},
        }
    )
    for name in ("tunesmith-console", "tunesmith-openai"):
        (container,) = one(manifests, "Deployment", name)["spec"]["template"]["spec"]["containers"]
        assert container["resources"] == {"limits": {"memory": "1Gi"}, "requests": {"cpu": "20m", "memory": "96Mi"}}


def test_doctor_finds_the_operator_by_any_name_and_nothing_else_of_the_release(render: Render) -> None:
    selector = dict(pair.split("=") for pair in OPERATOR.split(","))
    for values in ({}, {"nameOverride": "tuner"}, {"fullnameOverride": "x"}):
        manifests = render({**values, "console": {"enabled": True}})
        deployments = [m["metadata"] for m in manifests if m["kind"] == "Deployment"]
        assert len(deployments) == 2
        (found,) = [m for m in deployments if selector.items() <= m["labels"].items()]
        assert found["labels"]["app.kubernetes.io/component"] == "operator"


def test_a_release_is_packaged_as_the_version_of_its_tag(helm: Callable[..., str], tmp_path: Path) -> None:
    """Else each release would be pushed over the one before."""
    workflow = (ROOT / ".github" / "workflows" / "release.yaml").read_text()
    (line,) = [line for line in workflow.splitlines() if "helm package" in line]
    command = line.replace('"$version"', "1.2.3").replace("helm/tunesmith", str(CHART)).replace("dist", str(tmp_path))
    helm(*command.split()[1:])
    chart = yaml.safe_load(helm("show", "chart", str(tmp_path / "tunesmith-1.2.3.tgz")))
    assert (chart["version"], chart["appVersion"]) == ("1.2.3", "1.2.3")


def test_restricted_security_context(render: Render) -> None:
    pod = one(render(), "Deployment")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]
    assert container["resources"]["limits"]["memory"] == "256Mi"


def environment(manifests: list[dict[str, Any]]) -> dict[str, str]:
    component = "app.kubernetes.io/component"
    operator = [m for m in manifests if m["metadata"].get("labels", {}).get(component) == "operator"]
    (container,) = one(operator, "Deployment")["spec"]["template"]["spec"]["containers"]
    return {item["name"]: item.get("value", "from-the-pod") for item in container["env"]}


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_the_operator_understands_its_environment(render: Render, values: dict[str, Any]) -> None:
    settings = load(environment(render(values)))
    assert settings.namespace == "from-the-pod"
    assert settings.pod_name == "from-the-pod"
    assert settings.namespaces == tuple(dict.fromkeys(values.get("watchNamespaces", ())))
    assert settings.prices == values.get("prices", {})
    assert settings.gang_scheduler == values.get("gangScheduler", "None")


def test_chart_doctor_and_readme_ask_for_the_same_kubernetes() -> None:
    """It is the first whose API server keeps `preStop.sleep` by default: an older one drops it, and refuses the pod."""
    major, minor = OLDEST
    assert OLDEST >= (1, 30)
    assert read(CHART / "Chart.yaml")["kubeVersion"] == f">={major}.{minor}.0-0"
    assert f"Kubernetes {major}.{minor} or newer" in (ROOT / "README.md").read_text()


def test_the_default_settings_are_the_operators_own(render: Render) -> None:
    settings, default = load(environment(render())), load({})
    for name in ("workers", "log_level", "default_store", "image_pull_policy", "engine_image"):
        assert getattr(settings, name) == getattr(default, name)


def test_images(render: Render) -> None:
    manifests = render(MATRIX["mirror"])
    variables = environment(manifests)
    operator = f"registry.example.com:5000/mirror/tunesmith-operator:1.2.3@{DIGEST}"
    assert variables["TUNESMITH_OPERATOR_IMAGE"] == operator
    assert variables["TUNESMITH_TRAINER_IMAGE"] == "registry.example.com:5000/mirror/tunesmith-trainer:0.1.0"
    assert variables["TUNESMITH_ENGINE_IMAGE"].startswith("registry.example.com:5000/mirror/vllm/vllm-openai:v")
    assert variables["TUNESMITH_IMAGE_PULL_POLICY"] == "Always"
    pod = one(manifests, "Deployment")["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == operator
    assert pod["imagePullSecrets"] == [{"name": "regcred"}]


def test_crds_are_those_in_the_repository_and_stay(render: Render) -> None:
    crds = [m for m in render() if m["kind"] == "CustomResourceDefinition"]
    folder = CHART.parents[1] / "crds"
    assert {crd["metadata"]["name"] for crd in crds} == {
        read(path)["metadata"]["name"] for path in folder.glob("*.yaml")
    }
    for crd in crds:
        assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert crd == read(folder / f"{crd['spec']['names']['plural']}.yaml")


def test_two_replicas_get_a_budget_and_spread(render: Render) -> None:
    manifests = render({"replicas": 2})
    deployment = one(manifests, "Deployment")
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert one(manifests, "PodDisruptionBudget")["spec"] == {"maxUnavailable": 1, "selector": {"matchLabels": selector}}
    assert "podAntiAffinity" in deployment["spec"]["template"]["spec"]["affinity"]
    assert not [m for m in render() if m["kind"] == "PodDisruptionBudget"]


def test_the_metrics_service_finds_the_pod(render: Render) -> None:
    manifests = render({"metrics": {"service": {"port": 80}}})
    service, deployment = one(manifests, "Service"), one(manifests, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    ports = {
        port["name"]: port["containerPort"] for port in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]
    }
    assert ports == {"health": 8080, "metrics": 9090}
    assert service["spec"]["ports"] == [{"name": "metrics", "port": 80, "targetPort": "metrics"}]


def test_selectors_do_not_change_with_the_version(helm: Callable[..., str]) -> None:
    text = helm("template", "t", str(CHART), "--namespace", NAMESPACE, "--show-only", "templates/deployment.yaml")
    assert yaml.safe_load(text)["spec"]["selector"]["matchLabels"].keys() == {
        "app.kubernetes.io/name",
        "app.kubernetes.io/instance",
        "app.kubernetes.io/component",
    }


def test_pull_secrets_of_all_pods_reach_the_operator(render: Render) -> None:
    assert load(environment(render(MATRIX["private-registry"]))).pull_secrets == ("regcred", "mirror")
    assert load(environment(render())).pull_secrets == ()


def policies(manifests: list[dict[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    found = [m for m in manifests if m["kind"] == "NetworkPolicy"]
    return {(m["metadata"]["namespace"], m["metadata"]["name"]): m["spec"] for m in found}


def test_network_policies_are_for_the_operator_and_the_namespaces_that_it_watches(render: Render) -> None:
    assert policies(render()) == {}
    found = policies(render(MATRIX["network-policies"]))
    names = {(team, f"tunesmith-{what}") for team in ("team-a", "team-b") for what in ("jobs", "serving")}
    assert found.keys() == {(NAMESPACE, "tunesmith"), *names}
    elsewhere = policies(render(MATRIX["network-policies-cluster-wide"]))
    assert {namespace for namespace, _ in elsewhere} == {NAMESPACE, "team-a"}


def test_only_the_operator_and_prometheus_reach_an_agent_and_only_users_the_model(render: Render) -> None:
    manifests = render(MATRIX["network-policies"])
    serving = policies(manifests)["team-a", "tunesmith-serving"]
    users, gateways, admins, scrapers = serving["ingress"]
    [peer] = gateways["from"]
    owner = Owner("ModelDeployment", "team-a", "x", "u")
    assert peer["podSelector"]["matchLabels"].items() <= gateway_labels(owner).items()
    assert "namespaceSelector" not in peer
    assert [port["port"] for port in gateways["ports"]] == [ENGINE_PORT, AGENT_PORT]
    assert [port["port"] for port in users["ports"]] == [ENGINE_PORT]
    assert users["from"] == MATRIX["network-policies"]["networkPolicy"]["servingFrom"]
    assert [port["port"] for port in admins["ports"]] == [AGENT_PORT]
    operator, prometheus = admins["from"]
    assert operator["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": NAMESPACE}
    labels = one(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert operator["podSelector"]["matchLabels"].items() <= labels.items()
    assert prometheus == MATRIX["network-policies"]["networkPolicy"]["metricsFrom"][0]
    assert scrapers == {"from": [prometheus], "ports": [{"port": ENGINE_PORT}]}


def test_prometheus_reaches_whatever_the_monitors_scrape(render: Render) -> None:
    """A policy that shuts it out would blind the alerts."""
    ports = {"progress": PORT, "agent": AGENT_PORT, "control": AGENT_PORT, "http": ENGINE_PORT}
    of = {"tunesmith-training": "jobs", "tunesmith-serving": "serving", "tunesmith-gateways": "serving"}
    monitors = [m for m in render(MATRIX["monitored"]) if m["kind"] == "PodMonitor"]
    values = MATRIX["network-policies"]
    [prometheus] = values["networkPolicy"]["metricsFrom"]
    found = policies(render(values))
    for monitor in monitors:
        ingress = found["team-a", f"tunesmith-{of[monitor['metadata']['name']]}"]["ingress"]
        let_in = {port["port"] for rule in ingress if prometheus in rule["from"] for port in rule.get("ports", [])}
        assert {ports[one["port"]] for one in monitor["spec"]["podMetricsEndpoints"]} <= let_in


def test_policies_select_the_pods_that_the_operator_makes(render: Render) -> None:
    found = policies(render(MATRIX["network-policies"]))
    labels = {kind: Owner(kind, "team-a", "x", "u").labels for kind in MODELS}
    assert (
        found["team-a", "tunesmith-serving"]["podSelector"]["matchLabels"].items() <= labels["ModelDeployment"].items()
    )
    (expression,) = found["team-a", "tunesmith-jobs"]["podSelector"]["matchExpressions"]
    assert (expression["key"], expression["values"]) == (KIND_LABEL, [*JOBS])
    (peer,) = found[NAMESPACE, "tunesmith"]["egress"][-1]["to"]
    assert all(peer["podSelector"]["matchLabels"].items() <= one.items() for one in labels.values())
    assert [port["port"] for port in found[NAMESPACE, "tunesmith"]["egress"][-1]["ports"]] == [PORT, AGENT_PORT]


def test_common_labels_are_on_every_object_and_select_nothing(render: Render) -> None:
    manifests = [m for m in render(MATRIX["spread"]) if m["kind"] != "CustomResourceDefinition"]
    assert all(m["metadata"]["labels"]["team"] == "platform" for m in manifests)
    assert "team" not in one(manifests, "Deployment")["spec"]["selector"]["matchLabels"]


def test_labels_of_pods_and_monitors_win_over_common_ones(render: Render) -> None:
    manifests = render(MATRIX["labels-that-meet"])
    deployment = one(manifests, "Deployment")
    assert deployment["metadata"]["labels"]["team"] == "platform"
    assert deployment["spec"]["template"]["metadata"]["labels"]["team"] == "models"
    assert one(manifests, "ServiceMonitor")["metadata"]["labels"]["team"] == "watchers"


def test_all_pods_of_the_release_run_where_they_are_told_to(render: Render) -> None:
    where = {key: MATRIX["scheduling"][key] for key in ("priorityClassName", "nodeSelector", "tolerations")}
    more = {"console": {"enabled": True}, "openaiApi": {"enabled": True, "namespaces": ["team-a"]}}
    pods = [m["spec"]["template"]["spec"] for m in render({**where, **more}) if m["kind"] == "Deployment"]
    assert len(pods) == 3
    assert all(where.items() <= pod.items() for pod in pods)


def test_the_chart_renders_the_same_twice(helm: Callable[..., str]) -> None:
    """Argo CD renders again and again: a random name or a time would be a diff for ever."""
    texts = {helm("template", "t", str(CHART), "--namespace", NAMESPACE) for _ in range(2)}
    assert len(texts) == 1


def test_the_rules_are_the_files_with_a_runbook_for_each_alert(render: Render) -> None:
    rendered = one(render(MATRIX["monitored"]), "PrometheusRule")["spec"]
    plain = read(CHART / "files" / "rules.yaml")
    for group in rendered["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                assert rule["annotations"].pop("runbook_url").endswith(f"/docs/runbooks/{rule['alert']}.md")
    assert rendered == plain


def test_pod_monitors_select_the_pods_that_the_operator_makes(render: Render) -> None:
    monitors = {m["metadata"]["name"]: m["spec"] for m in render(MATRIX["monitored"]) if m["kind"] == "PodMonitor"}
    owner = Owner("FineTuneJob", "ns", "x", "uid")
    # The last label is the Job controller's own.
    assert monitors["tunesmith-training"]["selector"]["matchLabels"].items() <= {
        **owner.labels, "batch.kubernetes.io/job-completion-index": "0"
    }.items()  # fmt: skip
    serving = Owner("ModelDeployment", "ns", "x", "uid")
    assert monitors["tunesmith-serving"]["selector"]["matchLabels"].items() <= pod_labels(serving).items()
    assert monitors["tunesmith-gateways"]["selector"]["matchLabels"].items() <= gateway_labels(serving).items()
    assert [one["port"] for one in monitors["tunesmith-serving"]["podMetricsEndpoints"]] == ["agent", "http"]
    assert monitors["tunesmith-training"]["namespaceSelector"] == {"any": True}
    [only] = {
        tuple(m["spec"]["namespaceSelector"]["matchNames"])
        for m in render(MATRIX["monitored-namespaces"])
        if m["kind"] == "PodMonitor"
    }
    assert only == ("team-a",)


def test_the_openai_api_is_restricted_has_no_rights_and_understands_its_environment(
    render: Render, tmp_path: Path
) -> None:
    manifests = render(MATRIX["openai-api"])
    assert {m["metadata"]["name"] for m in manifests if "Role" in m["kind"]} == {
        m["metadata"]["name"] for m in render() if "Role" in m["kind"]
    }
    for namespace in ("team-a", "team-b"):
        own = [
            m for m in manifests if m["metadata"].get("namespace") == namespace and "openai" in m["metadata"]["name"]
        ]
        assert {m["kind"] for m in own} == {"Deployment", "ConfigMap", "Service", "NetworkPolicy"}
        pod = one(own, "Deployment")["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert "serviceAccountName" not in pod
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        given = {item["name"]: item["value"] for item in container["env"]}
        settings = openai_settings.load({"KUBERNETES_SERVICE_HOST": "10.0.0.1", **given})
        assert (settings.namespace, settings.store) == (namespace, "pvc://tunesmith-store/openai")
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        folders = {
            str(folder) for folder in (settings.models.parent, settings.folder.parent, settings.authority.parent)
        }
        assert folders <= mounts
        (tmp_path / "models.yaml").write_text(one(own, "ConfigMap")["data"]["models.yaml"])
        assert catalog.load(tmp_path / "models.yaml")["small"].spec["nodes"] == 2


def test_the_console_is_restricted_has_no_rights_and_shows_what_the_operator_would_make(render: Render) -> None:
    manifests = render(MATRIX["console"])
    names = {m["metadata"]["name"] for m in render() if "Role" in m["kind"]}
    assert {m["metadata"]["name"] for m in manifests if "Role" in m["kind"]} == names
    own = [m for m in manifests if m["metadata"]["name"].endswith("-console")]
    assert {m["kind"] for m in own} == {"Deployment", "Service", "NetworkPolicy"}
    deployment = one(own, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert deployment["spec"]["replicas"] == 2
    assert pod["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in pod
    assert pod["imagePullSecrets"] == [{"name": "regcred"}]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    given = {item["name"]: item["value"] for item in container["env"]}
    settings = console_settings.load({"KUBERNETES_SERVICE_HOST": "10.0.0.1", **given})
    assert settings.port == container["ports"][0]["containerPort"]
    assert str(settings.authority.parent) in {mount["mountPath"] for mount in container["volumeMounts"]}
    # The same settings as the operator's, where they decide what a resource becomes.
    operators = [m for m in manifests if m["kind"] == "Deployment" and m not in own]
    theirs = load(environment(operators))
    decisive = {"default_store", "operator_image", "trainer_image", "engine_image", "gang_scheduler", "prices"}
    assert load(given).model_dump(include=decisive) == theirs.model_dump(include=decisive)
    assert load(given).default_store == "pvc://team-store"
    selector = one(own, "Service")["spec"]["selector"]
    assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    policy = one(own, "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"] == selector
    assert [rule["from"] for rule in policy["ingress"]] == [MATRIX["console"]["networkPolicy"]["consoleFrom"]]
    assert not [m for m in render() if m["metadata"]["name"].endswith("-console")]
