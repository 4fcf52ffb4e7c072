"""Install, use, upgrade, roll back, uninstall: one release's life, in the order of this file, with a job that runs
through all of it.
"""

from __future__ import annotations

import json
from typing import Any

import yaml
from install.conftest import NEXT, Installation
from integration.harness import custom, eventually, evidence, infer, merge, serve, step_reached, train
from tunesmith.api.kinds import MODELS, plural

UNCHECKED: dict[str, Any] = {"memory": {"check": "Disabled"}}
KINDS = tuple(map(plural, MODELS))

# Granted, and not seen to be used here, each for its reason.
NOT_SEEN = {
    ("", "pods", "delete"): "a lost node's pods: tests/queueing/test_nodes.py",
    ("", "pods/status", "patch"): "a lost node's pods: tests/queueing/test_nodes.py",
    ("keda.sh", "scaledobjects", "create"): "KEDA is not on the test cluster, which refuses the patch before it asks",
    ("keda.sh", "scaledobjects", "delete"): "KEDA is not on the test cluster: there is none to delete",
    ("gateway.networking.k8s.io", "httproutes", "create"): "as for KEDA: the Gateway API is not on the test cluster",
    ("gateway.networking.k8s.io", "httproutes", "delete"): "as for KEDA: there is none to delete",
    (
        "leaderworkerset.x-k8s.io",
        "leaderworkersets",
        "create",
    ): "as for KEDA: its controller is not on the test cluster",
    ("leaderworkerset.x-k8s.io", "leaderworkersets", "delete"): "as for KEDA: there is none to delete",
    ("networking.k8s.io", "networkpolicies", "delete"): "goes with the groups: tests/unit/operator/test_engines.py",
    ("discovery.k8s.io", "endpointslices/restricted", "create"): "asked by an admission plugin of OpenShift",
    **{
        ("tunesmith.io", f"{kind}/finalizers", "update"): "asked by an admission plugin, where it is on"
        for kind in KINDS
    },
}
# Two steps that one request of the API takes: server-side apply of what is not there yet.
CREATED = 201


def pods(installation: Installation) -> dict[str, str]:
    """Name and UID of the long job's pods."""
    items = json.loads(installation.tenant("get", "pod", "-l", "tunesmith.io/name=long", "-o", "json"))["items"]
    return {item["metadata"]["name"]: item["metadata"]["uid"] for item in items}


def step(installation: Installation) -> int:
    return int(installation.tenant.get("ftj", "long")["status"].get("progress", {}).get("step", 0))


def goes_on(installation: Installation, before: dict[str, str], since: int) -> None:
    """The job's pods are the same, and its status, which the new operator writes, tells of later steps."""
    step_reached(installation.tenant, "long", since + 3)
    assert pods(installation) == before
    assert len(installation.tenant.get("ftj", "long")["status"]["attempts"]) == 1


def test_a_job_goes_on_through_an_upgrade_from_the_previous_version(installed: Installation) -> None:
    training = {"maxSteps": 3000, "globalBatchSize": 2}
    installed.tenant.apply(train("long", "steps-300", nodes=2, training=training, **UNCHECKED))
    step_reached(installed.tenant, "long", 3)
    before, since = pods(installed), step(installed)
    assert len(before) == 2
    installed.install(**NEXT)
    assert "tunesmith-0.3.0" in installed.helm("list")
    goes_on(installed, before, since)


def test_a_tenant_that_is_not_watched_is_left_alone(installed: Installation) -> None:
    installed.stranger.apply(train("x", **UNCHECKED))
    installed.tenant.apply(train("first", ttlSecondsAfterFinished=5, **UNCHECKED))
    installed.tenant.wait("ftj", "first", "Completed")
    assert "status" not in installed.stranger.get("ftj", "x")
    namespaces = {(event.get("objectRef") or {}).get("namespace") for event in installed.requests()}
    assert namespaces <= {None, installed.system.namespace, installed.tenant.namespace}


def test_the_role_is_what_the_operator_asks_for_no_less_and_no_more(installed: Installation) -> None:
    use(installed)
    used, refused = set(), []
    for event in installed.requests():
        ref = event.get("objectRef") or {}
        if event["annotations"].get("authorization.k8s.io/decision") == "forbid":
            refused.append((event["verb"], event["requestURI"]))
        elif "resource" in ref:
            resource = ref["resource"] + (f"/{ref['subresource']}" if "subresource" in ref else "")
            used.add((ref.get("apiGroup", ""), resource, event["verb"]))
            if event["verb"] == "patch" and event["responseStatus"]["code"] == CREATED:
                used.add((ref.get("apiGroup", ""), resource, "create"))
    manifests = list(yaml.load_all(installed.helm("get", "manifest", installed.release.name), yaml.CSafeLoader))
    users = (f"{installed.release.name}-view", f"{installed.release.name}-edit")
    granted = {
        (group, resource, verb)
        for manifest in manifests
        if manifest["kind"] in {"Role", "ClusterRole"} and manifest["metadata"]["name"] not in users
        for rule in manifest["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert not refused
    assert used <= granted
    assert granted - used == NOT_SEEN.keys()


def use(installed: Installation) -> None:
    """Everything that the operator does for its users, but for nodes that are lost."""
    tenant = installed.tenant
    tenant("create", "configmap", "rows", "--from-literal=train.jsonl={}")
    adapters = [{"name": "a", "uri": "pvc://tunesmith-store/a", "replicas": 1}]
    model = {"mergeJobRef": {"name": "merged"}}
    keda = {"scaler": "KEDA", "maxReplicas": 2, "queueLength": 1, "prometheus": "http://prometheus"}
    gpu = {"limits": {"nvidia.com/gpu": 1}}
    tenant.apply(
        train(
            "tuned", datasets=[{"uri": "configmap://rows/train.jsonl"}], podTemplate={"env": [secret()]}, **UNCHECKED
        ),
        merge("merged", "tuned"),
        serve("chat", model=model, replicas=2, adapters=adapters),
        serve("scaled", model=model, autoscaling={"maxReplicas": 2, "queueLength": 1}),
        serve("keda", model=model, autoscaling=keda),
        serve("routed", model=model, gateway={"httpRoute": {"parentRefs": [{"name": "public"}]}}),
        serve(
            "grouped",
            model=model,
            engine={"nodes": 2},
            modelCache={"type": "Claim", "claim": {"name": "tunesmith-store"}},
        ),
        train("gpu", resources=gpu),
        train("queued", queueName="team", **UNCHECKED),
        train("slow", "steps-2000", training={"maxSteps": 300, "globalBatchSize": 2}, **UNCHECKED),
        train("short", ttlSecondsAfterFinished=1, **UNCHECKED),
        custom("MergeJob", "brief", {**merge("m", "tuned")["spec"], "ttlSecondsAfterFinished": 1}),
        custom("InferenceJob", "asked", {**infer("a", "tuned")["spec"], "ttlSecondsAfterFinished": 1}),
    )
    tenant("create", "secret", "generic", "token", "--from-literal=value=x")
    eventually(lambda: "chat-a" in tenant.names("service"), lambda: tenant("describe", "mdep", "chat"))
    tenant.wait("ftj", "slow", "Running")
    victim = next(name for name in tenant.running_pods() if name.startswith("slow-"))
    tenant("delete", "pod", victim, "--wait=false")
    eventually(lambda: tenant.names("horizontalpodautoscaler"), lambda: tenant("describe", "mdep", "scaled"))
    tenant("patch", "mdep", "scaled", "--type=merge", "-p", '{"spec": {"autoscaling": null}}')
    adapters[0].pop("replicas")
    patch = {"spec": {"replicas": 1, "adapters": adapters}}
    tenant("patch", "mdep", "chat", "--type=merge", "-p", json.dumps(patch))
    eventually(lambda: not tenant.names("horizontalpodautoscaler"), lambda: tenant("describe", "mdep", "scaled"))
    eventually(lambda: "chat" not in tenant.names("poddisruptionbudget"), lambda: tenant("describe", "mdep", "chat"))
    # The HTTPRoute is refused: what was made before it is removed all the same.
    eventually(lambda: "routed-gateway" in tenant.names("deployment"), lambda: tenant("describe", "mdep", "routed"))
    tenant.wait("mdep", "routed", "Rejected", "Ready")
    tenant("patch", "mdep", "routed", "--type=merge", "-p", '{"spec": {"gateway": null}}')
    eventually(lambda: "routed-gateway" not in tenant.names("deployment"), lambda: tenant("describe", "mdep", "routed"))
    eventually(lambda: "chat-a" not in tenant.names("service"), lambda: tenant("describe", "mdep", "chat"))
    eventually(lambda: not {"short", "first"} & set(tenant.names("ftj")), lambda: tenant("get", "ftj"))
    eventually(lambda: "brief" not in tenant.names("mergejob"), lambda: tenant("get", "mj"))
    eventually(lambda: "asked" not in tenant.names("inferencejob"), lambda: tenant("get", "inferencejob"))
    tenant("create", "quota", "none", "--hard=count/pods=0")
    tenant.apply(train("refused", **UNCHECKED))
    eventually(
        lambda: "exceeded quota" in json.dumps(tenant.get("ftj", "refused").get("status", {})),
        lambda: tenant("describe", "ftj", "refused"),
    )
    tenant("delete", "quota", "none")
    # The attempt after the one whose pod was deleted: between two of them there is no Job to delete.
    tenant.wait("ftj", "slow", "Running")
    tenant("patch", "ftj", "slow", "--type=merge", "-p", '{"spec": {"suspend": true}}')
    tenant.wait("ftj", "slow", "Suspended")
    eventually(
        lambda: "previous" in tenant.get("secret", "chat-admin")["data"], lambda: tenant("describe", "mdep", "chat")
    )


def secret() -> dict[str, Any]:
    return {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "token", "key": "value"}}}


def test_the_job_goes_on_through_a_rollback_and_the_way_forward_again(installed: Installation) -> None:
    before, since = pods(installed), step(installed)
    installed.helm("rollback", installed.release.name, "1", "--wait", "--timeout=3m", "--force-conflicts")
    goes_on(installed, before, since)
    since = step(installed)
    installed.install(**NEXT)
    goes_on(installed, before, since)


def test_uninstalling_leaves_the_kinds_the_resources_and_what_runs(installed: Installation) -> None:
    before, since = pods(installed), step(installed)
    installed.release.uninstall()
    assert installed.system.names("deployment") == []
    crds = json.loads(installed.system("get", "crd", "-o", "json"))["items"]
    assert {f"{kind}.tunesmith.io" for kind in KINDS} <= {crd["metadata"]["name"] for crd in crds}
    assert {"long", "tuned"} <= set(installed.tenant.names("ftj"))
    assert pods(installed) == before
    trace = evidence(installed.cluster, installed.tenant, "long")
    assert max(line["step"] for line in trace) >= since
    assert {line["attempt"] for line in trace} == {1}
