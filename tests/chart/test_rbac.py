"""The operator's rights."""

from __future__ import annotations

from typing import Any

import pytest
from chart.support import NAMESPACE, Manifests, Render, one
from tunesmith.api.kinds import JOBS, MODELS, plural
from tunesmith.kube.lease import NAME as LEASE


def granted(rules: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    """(group, resource, verb) of some rules."""
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def roles(manifests: Manifests, kind: str) -> dict[tuple[str | None, str], dict[str, Any]]:
    return {(m["metadata"].get("namespace"), m["metadata"]["name"]): m for m in manifests if m["kind"] == kind}


def test_cluster_wide(render: Render) -> None:
    manifests = render()
    binding = one(manifests, "ClusterRoleBinding", "tunesmith")
    assert binding["roleRef"]["name"] == "tunesmith"
    account = one(manifests, "ServiceAccount")
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": account["metadata"]["name"], "namespace": NAMESPACE}
    ]
    assert one(manifests, "Deployment")["spec"]["template"]["spec"]["serviceAccountName"] == account["metadata"]["name"]
    assert roles(manifests, "Role").keys() == {(NAMESPACE, "tunesmith-lease")}


def test_namespaces_get_the_same_rules_and_nothing_beyond(render: Render) -> None:
    everywhere = one(render(), "ClusterRole", "tunesmith")["rules"]
    manifests = render({"watchNamespaces": ["team-a", "team-b", "team-a"]})
    found = roles(manifests, "Role")
    assert found.keys() == {("team-a", "tunesmith"), ("team-b", "tunesmith"), (NAMESPACE, "tunesmith-lease")}
    assert found["team-a", "tunesmith"]["rules"] == everywhere
    assert roles(manifests, "RoleBinding").keys() == found.keys()
    assert [m["metadata"]["name"] for m in manifests if m["kind"] == "ClusterRoleBinding"] == ["tunesmith-nodes"]
    alone = render({"watchNamespaces": ["team-a"], "rbac": {"nodes": False}})
    assert not [m for m in alone if m["kind"] == "ClusterRoleBinding"]


def test_of_nodes_the_operator_only_reads(render: Render) -> None:
    rules = one(render(), "ClusterRole", "tunesmith-nodes")["rules"]
    assert granted(rules) == {("", "nodes", "get"), ("", "nodes", "list")}


@pytest.mark.parametrize(
    ("scheduler", "groups"),
    [("None", set()), ("Volcano", {"scheduling.volcano.sh"}), ("Coscheduling", {"scheduling.x-k8s.io"})],
)
def test_pod_groups_are_made_only_for_the_scheduler_that_the_cluster_has(
    render: Render, scheduler: str, groups: set[str]
) -> None:
    rights = granted(one(render({"gangScheduler": scheduler}), "ClusterRole", "tunesmith")["rules"])
    assert {(group, verb) for group, resource, verb in rights if resource == "podgroups"} == {
        (group, "create") for group in groups
    }


def test_least_privilege(render: Render) -> None:
    rights = granted(one(render(), "ClusterRole", "tunesmith")["rules"])
    assert not [right for right in rights if "*" in right]
    assert {verb for group, resource, verb in rights if resource == "secrets"} <= {"get", "create", "patch"}
    assert not [
        right for right in rights if right[1] in {"pods/exec", "pods/log", "nodes", "serviceaccounts", "namespaces"}
    ]
    assert not [right for right in rights if right[0] == "rbac.authorization.k8s.io"]
    # A resource's spec is its owner's: the operator writes its status, and deletes jobs whose time to live is over.
    reads = {"get", "list", "watch"}
    assert {verb for _, resource, verb in rights if resource == "modeldeployments"} == reads
    for kind in JOBS:
        assert {verb for _, resource, verb in rights if resource == plural(kind)} == {*reads, "delete"}
    for kind in MODELS:
        assert ("tunesmith.io", f"{plural(kind)}/status", "patch") in rights
        assert ("tunesmith.io", f"{plural(kind)}/finalizers", "update") in rights


def test_the_lease_is_the_only_right_at_home(render: Render) -> None:
    rules = one(render(), "Role")["rules"]
    assert granted(rules) == {("coordination.k8s.io", "leases", verb) for verb in ("get", "create", "update")}
    # Others' Leases may be in the same namespace. Only what is new has no name yet.
    assert [rule["verbs"] for rule in rules if rule.get("resourceNames") != [LEASE]] == [["create"]]


@pytest.mark.parametrize("role", ["view", "edit"])
def test_users_get_the_kinds_with_the_clusters_own_roles(render: Render, role: str) -> None:
    found = one(render(), "ClusterRole", f"tunesmith-{role}")
    assert found["metadata"]["labels"][f"rbac.authorization.k8s.io/aggregate-to-{role}"] == "true"
    assert {group for group, _, _ in granted(found["rules"])} == {"tunesmith.io"}
    verb = "get" if role == "view" else "create"
    assert {resource for _, resource, what in granted(found["rules"]) if what == verb and "/" not in resource} == {
        plural(kind) for kind in MODELS
    }
    off = render({"rbac": {"aggregateToDefaultRoles": False}})
    assert f"tunesmith-{role}" not in [m["metadata"]["name"] for m in off]
