"""Engines over several devices and pods, and where their model comes from."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pydantic import ValidationError
from tunesmith.api.modeldeployment import ModelDeployment, ModelDeploymentSpec
from tunesmith.children.groups import name_problem
from tunesmith.children.meta import Object, Owner
from tunesmith.decide.modeldeployment import decide
from tunesmith.decide.world import Decision
from tunesmith.serving.contract import AgentStatus
from tunesmith.serving.parallel import parallelism, problem
from tunesmith.settings import Settings
from unit.operator.builders import UID, children, mine, pod, serve, world

CACHE = {"type": "Claim", "claim": {"name": "models", "keepDays": 3}}
HUB = {"uri": "hf://org/big@main", "secretRef": {"name": "hub"}}


def decided(spec: dict[str, Any], settings: Settings | None = None, **fields: Any) -> Decision:
    decision = decide(world(serve(**{"model": HUB, **spec}), **fields), settings or Settings())
    assert decision is not None
    return decision


def applied(decision: Decision, kind: str) -> Object:
    [found] = [one for one in decision.apply if one["kind"] == kind]
    return found


def template(**spec: Any) -> Object:
    body: Object = applied(decided(spec), "Deployment")["spec"]["template"]["spec"]
    return body


def containers(template: Object) -> dict[str, Object]:
    return {one["name"]: one for one in [*template.get("initContainers", []), *template["containers"]]}


def model_path(template: Object) -> str:
    [argument] = [a for a in containers(template)["engine"]["args"] if a.startswith("--model=")]
    return str(argument.removeprefix("--model="))


@pytest.mark.parametrize(
    ("gpus", "engine", "wanted"),
    [
        (0, {}, (1, 1)),
        (8, {}, (8, 1)),
        (8, {"nodes": 2}, (8, 2)),
        (8, {"nodes": 2, "tensorParallel": 16}, (16, 1)),
        (8, {"nodes": 2, "tensorParallel": 4}, (4, 2)),
        (8, {"nodes": 2, "pipelineParallel": 4}, (4, 4)),
        (8, {"tensorParallel": 2, "pipelineParallel": 2}, (2, 2)),
        (0, {"nodes": 2, "tensorParallel": 2}, (2, 1)),
    ],
)
def test_a_model_is_spread_over_all_gpus_unless_told_otherwise(
    gpus: int, engine: dict[str, Any], wanted: tuple[int, int]
) -> None:
    resources = {"limits": {"nvidia.com/gpu": gpus}} if gpus else {}
    spec = ModelDeployment.model_validate(serve(engine=engine, resources=resources)).spec
    assert parallelism(spec) == wanted
    assert problem(spec) is None


@pytest.mark.parametrize(
    ("gpus", "engine", "says"),
    [
        (8, {"nodes": 2, "tensorParallel": 3, "pipelineParallel": 1}, "cannot be divided over 2 nodes"),
        (4, {"nodes": 2, "tensorParallel": 16, "pipelineParallel": 1}, "2 nodes of 4 GPUs have 8"),
    ],
)
def test_what_vllm_could_not_spread_so_is_refused_with_what_to_do(gpus: int, engine: dict[str, Any], says: str) -> None:
    spec = {"engine": engine, "resources": {"limits": {"nvidia.com/gpu": gpus}}, "modelCache": CACHE}
    decision = decided(spec)
    ready = decision.status.body()["conditions"][0]
    assert (ready["reason"], decision.apply) == ("ConfigError", ())
    assert says in ready["message"]


def test_the_model_is_fetched_to_the_claim_once_and_only_the_agent_writes_there_later() -> None:
    body = template(modelCache=CACHE)
    found, path = containers(body), model_path(body)
    assert path.startswith("/mnt/claims/models/.tunesmith/models/")
    fetch = found["fetch-0"]
    assert fetch["command"][-5:-1] == ["--shared", "--keep-days", "3", "--secret"]
    assert path in fetch["command"]
    modes = {
        name: [
            mount.get("readOnly", False) for mount in one["volumeMounts"] if mount["mountPath"] == "/mnt/claims/models"
        ]
        for name, one in found.items()
    }
    assert modes == {"fetch-0": [False], "agent": [False], "engine": [True]}
    assert {"name": "TUNESMITH_IN_USE", "value": path} in found["agent"]["env"]
    assert [v for v in body["volumes"] if v["name"] in ("fetched", "claim-models")] == [
        {"name": "claim-models", "persistentVolumeClaim": {"claimName": "models"}}
    ]
    assert not [m for m in found["engine"]["volumeMounts"] if "secret" in m["name"]]


@pytest.mark.parametrize(
    ("uri", "shared"),
    [
        ("hf://org/big@main", False),
        ("hf://org/big", False),
        ("hf://org/big@" + "a" * 40, True),
        ("oci://registry/big:1", False),
        ("oci://registry/big:1@sha256:" + "a" * 64, True),
        ("s3://bucket/big", False),
    ],
)
def test_deployments_share_what_an_address_pins_and_nothing_else(uri: str, shared: bool) -> None:
    path = model_path(template(model={"uri": uri}, modelCache=CACHE))
    assert path.endswith(UID[:8]) is not shared


def test_a_model_on_a_claim_is_read_where_it_is() -> None:
    assert model_path(template(model={"uri": "pvc://store/base"}, modelCache=CACHE)) == "/mnt/claims/store/base"


def test_an_image_is_mounted_by_the_kubelet_and_nothing_is_fetched() -> None:
    model = {"uri": "oci://registry:5000/big:1", "secretRef": {"name": "pull"}}
    body = template(model=model, modelCache={"type": "ImageVolume"})
    found, path = containers(body), model_path(body)
    assert set(found) == {"agent", "engine"}
    assert {"name": "model-image", "image": {"reference": "registry:5000/big:1", "pullPolicy": "IfNotPresent"}} in body[
        "volumes"
    ]
    for one in found.values():
        assert {"name": "model-image", "mountPath": path, "readOnly": True} in one["volumeMounts"]
    assert body["imagePullSecrets"] == [{"name": "pull"}]


GROUP: dict[str, Any] = {
    "engine": {"nodes": 2},
    "modelCache": CACHE,
    "resources": {"limits": {"nvidia.com/gpu": 8}},
    "replicas": 3,
    "adapters": [{"name": "a", "uri": "pvc://store/adapters/a"}],
}


def test_a_group_is_one_server_and_workers_that_find_it_and_the_same_files() -> None:
    decision = decided(GROUP)
    assert not [one for one in decision.apply if one["kind"] == "Deployment"]
    body = applied(decision, "LeaderWorkerSet")["spec"]
    assert body["replicas"] == 3
    group = body["leaderWorkerTemplate"]
    assert (group["size"], group["restartPolicy"]) == (2, "RecreateGroupOnPodRestart")
    leader, worker = group["leaderTemplate"], group["workerTemplate"]
    assert leader["metadata"]["labels"]["tunesmith.io/role"] == "engine"
    assert worker["metadata"]["labels"]["tunesmith.io/role"] == "engine-worker"
    found = {**containers(leader["spec"]), "worker": containers(worker["spec"])["engine"]}
    common = ["--nnodes=2", "--master-addr=$(LWS_LEADER_ADDRESS)", "--master-port=29500"]
    for name, rank in (("engine", "0"), ("worker", "$(LWS_WORKER_INDEX)")):
        args = found[name]["args"]
        assert [a for a in args if a.startswith(("--nnodes", "--master"))] == common
        assert {f"--node-rank={rank}", "--tensor-parallel-size=8", "--pipeline-parallel-size=2"} <= set(args)
        assert {"name": "shm", "mountPath": "/dev/shm"} in found[name]["volumeMounts"]
        assert found[name]["resources"] == {"limits": {"nvidia.com/gpu": 8}}
    assert "--headless" in found["worker"]["command"]
    assert "--middleware=tunesmith_guard.Guard" not in found["worker"]["args"]
    assert model_path(leader["spec"]) == model_path(worker["spec"])
    folder = f"/mnt/claims/models/.tunesmith/adapters/{UID}/$(TUNESMITH_GROUP)"
    assert {"name": "TUNESMITH_ADAPTERS_FOLDER", "value": folder} in found["agent"]["env"]
    for name in ("engine", "worker"):
        [mount] = [m for m in found[name]["volumeMounts"] if m["mountPath"] == "/mnt/claims/models"]
        assert mount["readOnly"]
    secrets = [v["secret"]["secretName"] for v in worker["spec"]["volumes"] if "secret" in v]
    assert secrets == ["hub"], "the admin token is none of a worker's business"


def stay() -> list[str]:
    """What a worker runs before it is told to end."""
    engine = {"nodes": 2, "drainSeconds": 1, "shutdownTimeoutSeconds": 59}
    group = applied(decided({**GROUP, "engine": engine}), "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    command: list[str] = containers(group["workerTemplate"]["spec"])["engine"]["lifecycle"]["preStop"]["exec"][
        "command"
    ]
    assert command[3:] == ["1", "60", "29500"]
    return command[:3]


@contextmanager
def first_process(*, hears: bool) -> Iterator[str]:
    """Like that of a container. The id of one that has a handler for SIGTERM, or has none."""
    script = (
        f"import signal, sys\nif {hears}: signal.signal(signal.SIGTERM, print)\nprint(flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        yield str(process.pid)


def ends(command: list[str], seconds: float = 30) -> bool:
    try:
        return subprocess.run([sys.executable, *command[1:]], timeout=seconds, check=True).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def test_a_worker_stays_while_it_has_its_leader_and_no_longer() -> None:
    with first_process(hears=True) as pid, socket.create_server(("127.0.0.1", 0)) as leader:
        mine = str(leader.getsockname()[1])
        assert ends([*stay(), pid, "60", mine]), "it never joined"
        with socket.create_connection(leader.getsockname()):
            joined = leader.accept()[0]
            assert not ends([*stay(), pid, "60", mine], 3)
            assert ends([*stay(), pid, "0.5", mine]), "the leader may not end"
            joined.close()
            assert ends([*stay(), pid, "60", mine]), "the leader has ended"


def test_a_worker_that_has_just_begun_is_told_to_end_when_it_can_hear_it() -> None:
    with first_process(hears=False) as pid:
        assert not ends([*stay(), pid, "60", "29500"], 3)


@pytest.mark.parametrize(
    ("length", "spec", "most"),
    [
        (43, {"replicas": 9}, None),
        (43, {"replicas": 10}, 42),
        (43, {"replicas": 1, "autoscaling": {"minReplicas": 1, "maxReplicas": 100}}, 41),
        (43, {"replicas": 10, "engine": {"nodes": 1}}, None),
        (42, {"replicas": 99}, None),
    ],
)
def test_a_name_under_which_not_all_groups_can_be_made_is_refused(
    length: int, spec: dict[str, Any], most: int | None
) -> None:
    """Seen: Pod "…-engine-10-1" is invalid: metadata.labels: must be no more than 63 bytes."""
    owner = Owner("ModelDeployment", "ns", "x" * length, UID)
    message = name_problem(owner, ModelDeploymentSpec.model_validate({"model": HUB, **GROUP, **spec}))
    assert (message is None) == (most is None)
    assert not message or f"{length} characters" in message
    assert not message or f"at most {most}:" in message


def test_others_reach_the_two_public_ports_of_a_group_only() -> None:
    policy = applied(decided(GROUP), "NetworkPolicy")["spec"]
    roles = ["engine", "engine-worker"]
    assert policy["podSelector"]["matchExpressions"][0]["values"] == roles
    inside, outside = policy["ingress"]
    assert [one["podSelector"]["matchLabels"]["tunesmith.io/role"] for one in inside["from"]] == roles
    assert "ports" not in inside
    assert [port["port"] for port in outside["ports"]] == [8000, 9500]
    covered = applied(decided(GROUP, Settings(policy_namespaces="ns")), "NetworkPolicy")["spec"]
    assert covered["ingress"] == [inside], "the chart's policies say who may use the public ports"


def test_workers_are_neither_asked_for_adapters_nor_counted() -> None:
    labels = {"tunesmith.io/role": "engine-worker"}
    leader, worker = pod("x-engine-0"), pod("x-engine-0-1")
    worker["metadata"]["labels"] |= labels
    agents = {"x-engine-0": AgentStatus(revision=1, engine="Ready", ready=True)}
    status = decided(GROUP, pods=(leader, worker), agents=agents).status.body()
    assert status["adapters"][0]["desiredPods"] == 1
    assert status["nodes"] == 2


@pytest.mark.parametrize(("ready", "gone"), [(2, []), (3, ["Deployment"])])
def test_one_pod_per_copy_serves_until_the_groups_do(ready: int, gone: list[str]) -> None:
    there = children(
        mine("Deployment", "x-engine", spec={"replicas": 3}, status={"readyReplicas": 3}),
        mine(
            "LeaderWorkerSet",
            "x-engine",
            spec={"replicas": 3, "leaderWorkerTemplate": {"size": 2}},
            status={"replicas": 3, "readyReplicas": ready, "updatedReplicas": 3},
        ),
    )
    decision = decided(GROUP, children=there)
    assert [one["kind"] for one in decision.delete] == gone
    assert decision.status.body()["readyReplicas"] == ready


def test_the_fields_have_bounds() -> None:
    for engine in ({"nodes": 0}, {"tensorParallel": 0}, {"pipelineParallel": 65}):
        with pytest.raises(ValidationError):
            ModelDeploymentSpec.model_validate({"model": HUB, "engine": engine})
