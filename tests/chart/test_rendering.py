"""What the chart renders, by value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest
import yaml
from chart.support import CHART, NAMESPACE, Refused, Render, one, read
from chart.values_matrix import DIGEST, MATRIX, REFUSED
from tunesmith.settings import load

VALIDATED_AGAINST = "1.36"


def test_lint(helm: Callable[..., str]) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", str(CHART))


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_every_manifest_is_valid(render: Render, values: dict[str, Any]) -> None:
    manifests = render(values)
    names = [(m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]) for m in manifests]
    assert len(set(names)) == len(names)
    for manifest in manifests:
        if manifest["kind"] != "CustomResourceDefinition":  # checked by the real API server elsewhere
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


def test_the_schema_knows_every_value_and_refuses_others() -> None:
    schema = read(CHART / "values.schema.json")
    assert read(CHART / "values.yaml").keys() <= schema["properties"].keys()
    passed_on = {"global", "affinity", "valueFrom"}  # a Pod's own fields: the API server checks them

    def walk(node: dict[str, Any], path: str) -> None:
        if node.get("type") == "object":
            assert "additionalProperties" in node, f"{path} takes any key"
        for key, child in node.get("properties", {}).items():
            if key not in passed_on:
                walk(child, f"{path}.{key}")
        if isinstance(node.get("items"), dict):
            walk(node["items"], f"{path}[]")

    walk(schema, "")
    walk(schema["definitions"]["image"], "image")


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
    (container,) = one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    return {item["name"]: item.get("value", "from-the-pod") for item in container["env"]}


@pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)
def test_the_operator_understands_its_environment(render: Render, values: dict[str, Any]) -> None:
    settings = load(environment(render(values)))
    assert settings.namespace == "from-the-pod"
    assert settings.pod_name == "from-the-pod"
    assert settings.namespaces == tuple(dict.fromkeys(values.get("watchNamespaces", ())))


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
