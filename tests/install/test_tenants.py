"""Two tenants of one operator, each with `edit` in a namespace of their own, who try to see and to harm each other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from install.conftest import Installation, installation
from integration.harness import Kubectl, custom, eventually, evidence, merge, step_reached, train
from tunesmith.api.kinds import MODELS, plural

UNCHECKED: dict[str, Any] = {"memory": {"check": "Disabled"}}
LONG: dict[str, Any] = {"training": {"maxSteps": 2000, "globalBatchSize": 2}, **UNCHECKED}
KINDS = tuple(map(plural, MODELS))


@dataclass(frozen=True)
class Tenant:
    """Somebody who may edit one namespace."""

    kubectl: Kubectl
    user: str

    def __call__(self, *arguments: str, stdin: object = None) -> str:
        """What kubectl says to them, be it a refusal."""
        return self.kubectl(*arguments, f"--as={self.user}", stdin=stdin, check=False)


@dataclass(frozen=True)
class Tenants:
    """Mallory, who is curious, and Bob, whose training runs."""

    own: Installation
    mallory: Tenant
    bob: Tenant


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    with installation(tmp_path_factory.mktemp("tenants")) as own:
        own.install(watchNamespaces=[own.tenant.namespace, own.stranger.namespace])
        people = []
        for kubectl in (own.stranger, own.tenant):
            kubectl("create", "serviceaccount", "person")
            user = f"{kubectl.namespace}:person"
            kubectl("create", "rolebinding", "person", "--clusterrole=edit", f"--serviceaccount={user}")
            people.append(Tenant(kubectl, f"system:serviceaccount:{user}"))
        both = Tenants(own, *people)
        bob = both.bob.kubectl
        bob("create", "secret", "generic", "token", "--from-literal=token=of-bob")
        bob("create", "configmap", "rows", "--from-literal=train.jsonl={}")
        eventually(
            lambda: "created" in both.bob("apply", "-f", "-", stdin=train("long", "steps-300", nodes=2, **LONG)),
            lambda: both.bob("auth", "can-i", "create", "finetunejobs"),
        )
        bob.apply(train("tuned", **UNCHECKED))
        bob.wait("ftj", "tuned", "Completed")
        step_reached(bob, "long", 3)
        yield both


def test_a_tenant_sees_and_changes_nothing_of_another_by_the_api(tenants: Tenants) -> None:
    theirs = ["-n", tenants.bob.kubectl.namespace]
    for kind in (*KINDS, "jobs", "pods", "configmaps", "secrets", "services"):
        for verb in ("get", "list", "create", "patch", "delete"):
            assert tenants.mallory("auth", "can-i", verb, kind, *theirs).strip() == "no", (verb, kind)
            assert tenants.bob("auth", "can-i", verb, kind).strip() == "yes", (verb, kind)
    assert "forbidden" in tenants.mallory("get", "ftj", "--all-namespaces")
    assert "forbidden" in tenants.mallory("delete", "ftj", "long", *theirs)
    assert "forbidden" in tenants.mallory(
        "patch", "ftj", "long", "--subresource=status", "--type=merge", "-p", "{}", *theirs
    )
    for kind in KINDS:  # a status is the operator's word, in one's own namespace, too
        assert tenants.bob("auth", "can-i", "patch", kind, "--subresource=status").strip() == "no"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (merge("m", "tuned"), "FineTuneJob tuned does not exist"),
        (
            train("a", model={"uri": "hf://a/b", "secretRef": {"name": "token"}}, **UNCHECKED),
            "spec.model: Secret token does not exist: create it in namespace stranger-",
        ),
        (train("b", datasets=[{"uri": "configmap://rows/train.jsonl"}], **UNCHECKED), "ConfigMap rows does not exist"),
        (
            train("c", podTemplate={"volumes": [{"name": "v", "secret": {"secretName": "token"}}]}, **UNCHECKED),
            "Secret token does not exist",
        ),
        (
            custom("ModelDeployment", "d", {"model": {"fineTuneJobRef": {"name": "tuned"}}}),
            "FineTuneJob tuned does not exist",
        ),
    ],
    ids=["another's job", "another's Secret", "another's ConfigMap", "another's Secret as a volume", "another's model"],
)
def test_a_name_is_never_that_of_something_in_another_namespace(
    tenants: Tenants, body: dict[str, Any], message: str
) -> None:
    mallory = tenants.mallory
    assert "created" in mallory("apply", "-f", "-", stdin=body)
    kind, name = body["kind"].lower(), body["metadata"]["name"]
    eventually(
        lambda: message in json.dumps(mallory.kubectl.get(kind, name).get("status", {})),
        lambda: json.dumps(mallory.kubectl.get(kind, name).get("status", {})),
    )


def test_the_same_name_in_two_namespaces_is_two_of_everything(tenants: Tenants) -> None:
    mine, theirs = tenants.mallory.kubectl, tenants.bob.kubectl
    before = evidence(tenants.own.cluster, theirs, "long")
    assert "created" in tenants.mallory("apply", "-f", "-", stdin=train("long", "steps-300", nodes=2, **LONG))
    step_reached(mine, "long", 3)
    volumes = {kubectl.get("pvc", "tunesmith-store")["spec"]["volumeName"] for kubectl in (mine, theirs)}
    assert len(volumes) == 2
    tenants.mallory("delete", "ftj", "long")
    eventually(lambda: not [n for n in mine.names("pod") if n.startswith("long-")], lambda: mine("get", "pods"))
    after = evidence(tenants.own.cluster, theirs, "long")
    assert after[: len(before)] == before
    assert len(after) > len(before)


def test_what_looks_like_a_part_of_anothers_job_is_none(tenants: Tenants) -> None:
    """A pod with the labels and the owner of Bob's, which says that it failed."""
    bob = tenants.bob.kubectl
    real = bob.list("pod")[0]
    forged = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {key: real["metadata"][key] for key in ("name", "labels", "ownerReferences")},
        "spec": {
            "restartPolicy": "Never",
            "containers": [{
                "name": "trainer", "image": real["spec"]["containers"][0]["image"], "command": ["false"],
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }],
            "securityContext": {"runAsNonRoot": True, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
        },
    }  # fmt: skip
    assert "created" in tenants.mallory("apply", "-f", "-", stdin=forged)
    reached = int(bob.get("ftj", "long")["status"]["progress"]["step"])
    step_reached(bob, "long", reached + 10)
    assert len(bob.get("ftj", "long")["status"]["attempts"]) == 1


def test_no_template_gets_a_pod_out_of_its_sandbox_or_a_token(tenants: Tenants) -> None:
    host = {"volumes": [{"name": "host", "hostPath": {"path": "/"}}]}
    tenants.mallory("apply", "-f", "-", stdin=train("out", podTemplate=host, **UNCHECKED))
    eventually(
        lambda: "violates PodSecurity" in json.dumps(tenants.mallory.kubectl.get("ftj", "out").get("status", {})),
        lambda: tenants.mallory.kubectl("describe", "ftj", "out"),
    )
    for pod in tenants.bob.kubectl.list("pod"):
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert not [v for v in pod["spec"]["volumes"] if "projected" in v]


def test_a_tenant_with_many_broken_jobs_does_not_hold_up_another(tenants: Tenants) -> None:
    broken = [train(f"broken-{n}", "crash", restartPolicy={"backoffSeconds": 0}, **UNCHECKED) for n in range(10)]
    waiting = [merge(f"waiting-{n}", "never") for n in range(30)]
    many = {"apiVersion": "v1", "kind": "List", "items": [*broken, *waiting]}
    tenants.mallory("apply", "-f", "-", stdin=many)
    assert "created" in tenants.bob("apply", "-f", "-", stdin=train("prompt", **UNCHECKED))
    tenants.bob.kubectl.wait("ftj", "prompt", "Completed", seconds=120)
