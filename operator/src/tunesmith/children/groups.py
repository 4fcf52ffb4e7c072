"""Engines that are spread over several pods: a LeaderWorkerSet, each group of which serves one copy of the model.

The leader is the pod that clients talk to, with the agent; its workers are vLLM processes without a server. A group
restarts as a whole. vLLM checks nobody on the ports between them, and reads pickles there: a NetworkPolicy keeps
others out. https://lws.sigs.k8s.io, https://docs.vllm.ai/en/latest/serving/parallelism_scaling.html
"""

from __future__ import annotations

from tunesmith.api.modeldeployment import ModelDeploymentSpec
from tunesmith.children.meta import ROLE_LABEL, Object, Owner
from tunesmith.children.modelcache import group_adapters
from tunesmith.children.pods import SCRATCH, Input, container, mounts
from tunesmith.children.serving import (
    ENGINE,
    WORKER,
    deployment_name,
    engine_environment,
    engine_pod,
    model_arguments,
    pod_labels,
    template,
)
from tunesmith.serving.contract import AGENT_PORT, ENGINE_PORT, State
from tunesmith.settings import Settings

MASTER_PORT = 29500
GROUP_INDEX = "leaderworkerset.sigs.k8s.io/group-index"
# The controller of LeaderWorkerSets gives them to every container.
LEADER, RANK = "$(LWS_LEADER_ADDRESS)", "$(LWS_WORKER_INDEX)"
# What a worker does before it is told to end. The answers that the leader still gives need it: it stays as long as the
# connection is there (ESTABLISHED) by which it joined. No longer, since a group is made again when all of it has ended;
# and that it does not sit out its grace period, it is not told before it hears: a container's first process ignores
# SIGTERM until it has a handler.
STAY = """\
import pathlib, sys, time
first, seconds, port = sys.argv[1:]
end, leader = time.monotonic() + float(seconds), f":{int(port):04X} 01 "
tables = [one for one in map(pathlib.Path, ("/proc/net/tcp", "/proc/net/tcp6")) if one.exists()]
while time.monotonic() < end and any(leader in one.read_text() for one in tables):
    time.sleep(0.5)
status = pathlib.Path(f"/proc/{first}/status")
while not int(status.read_text().split("SigCgt:")[1].split()[0], 16) >> 14 & 1:
    time.sleep(0.5)
"""
FIRST = 1
"""Of a container's processes, the one that is told to end."""
MAX_SET = 52
"""Of the name of a group's StatefulSet, which is in a label of its pods, with a hash of up to ten characters."""


def name_problem(owner: Owner, spec: ModelDeploymentSpec) -> str | None:
    """Why the pods of some group could not be made, and what to do. None: they can."""
    most = max(spec.replicas, spec.autoscaling.max_replicas if spec.autoscaling else 0)
    # One more than there are, while they are replaced.
    excess = len(f"{deployment_name(owner)}-{most}") - MAX_SET
    if spec.engine.nodes == 1 or excess <= 0:
        return None
    return (
        f"metadata.name: {len(owner.name)} characters, but where engine.nodes is above 1, {most} replicas can be made "
        f"under a name of at most {len(owner.name) - excess}: choose a shorter one, or fewer replicas"
    )


def leader_worker_set(
    owner: Owner, spec: ModelDeploymentSpec, state: State, model: Input, store: str | None, settings: Settings
) -> Object:
    """One group of `spec.engine.nodes` pods for each replica."""
    return {
        **owner.child("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet", deployment_name(owner)),
        "spec": {
            "replicas": spec.replicas,
            "startupPolicy": "LeaderCreated",  # its server answers when all workers have joined
            "rolloutStrategy": {
                "type": "RollingUpdate",
                "rollingUpdateConfiguration": {"maxSurge": 1, "maxUnavailable": 0, "partition": 0},
            },
            "leaderWorkerTemplate": {
                "size": spec.engine.nodes,
                "restartPolicy": "RecreateGroupOnPodRestart",
                "leaderTemplate": _leader(owner, spec, state, model, store, settings),
                "workerTemplate": _worker(owner, spec, state, model, settings),
            },
        },
    }


def group_policy(owner: Owner, settings: Settings) -> Object:
    """Lets the pods of the groups talk to one another on any port, and others on the two public ones only. Where the
    chart's own policies say who may use those, this one does not open them again.
    """
    own = {"podSelector": {"matchLabels": pod_labels(owner)}}, {"podSelector": {"matchLabels": worker_labels(owner)}}
    roles = [{"key": ROLE_LABEL, "operator": "In", "values": [ENGINE, WORKER]}]
    ingress: list[Object] = [{"from": list(own)}]
    if owner.namespace not in settings.covered_namespaces:
        ingress.append({"ports": [{"port": ENGINE_PORT, "protocol": "TCP"}, {"port": AGENT_PORT, "protocol": "TCP"}]})
    return {
        **owner.child("networking.k8s.io/v1", "NetworkPolicy", deployment_name(owner)),
        "spec": {
            "podSelector": {"matchLabels": owner.labels, "matchExpressions": roles},
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    }


def worker_labels(owner: Owner) -> dict[str, str]:
    """Labels of the pods that only their leader talks to."""
    return {**owner.labels, ROLE_LABEL: WORKER}


def _leader(
    owner: Owner, spec: ModelDeploymentSpec, state: State, model: Input, store: str | None, settings: Settings
) -> Object:
    pod = template(owner, spec, state, model, store, settings, _folder(spec))
    body = pod["spec"]
    [engine] = body["containers"]
    *fetchers, agent = body["initContainers"]
    engine = {**engine, "args": [*engine["args"], *_group_arguments(spec, "0")], "env": [*engine["env"], _address()]}
    env = [*agent["env"], *_adapters_folder(owner, spec)]
    return {**pod, "spec": {**body, "containers": [engine], "initContainers": [*fetchers, {**agent, "env": env}]}}


def _worker(owner: Owner, spec: ModelDeploymentSpec, state: State, model: Input, settings: Settings) -> Object:
    reads = mounts([model, _folder(spec)], settings)
    seconds = spec.engine.drain_seconds + spec.engine.shutdown_timeout_seconds
    stay = ["python3", "-c", STAY, *map(str, (FIRST, seconds, MASTER_PORT))]
    engine = container(
        ENGINE,
        settings.engine_image,
        settings,
        command=["python3", "-m", "vllm.entrypoints.cli.main", "serve", "--headless"],
        args=[*model_arguments(spec, state), *_group_arguments(spec, RANK)],
        env=[*engine_environment(), _address()],
        resources=spec.resources.body(),
        lifecycle={"preStop": {"exec": {"command": stay}}},
        volumeMounts=[*SCRATCH, *reads.mounts],
        terminationMessagePolicy="FallbackToLogsOnError",
    )
    return engine_pod(worker_labels(owner), spec, engine, reads.fetchers, reads.volumes, model, settings)


def _folder(spec: ModelDeploymentSpec) -> Input:
    """The claim on which the pods of a group find their adapters."""
    assert spec.model_cache is not None
    assert spec.model_cache.claim is not None
    return Input(f"pvc://{spec.model_cache.claim.name}")


def _group_arguments(spec: ModelDeploymentSpec, rank: str) -> list[str]:
    return [
        "--distributed-executor-backend=mp",
        f"--nnodes={spec.engine.nodes}",
        f"--node-rank={rank}",
        f"--master-addr={LEADER}",
        f"--master-port={MASTER_PORT}",
    ]


def _address() -> Object:
    """Where the others of the group find this pod."""
    return {"name": "VLLM_HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}


def _adapters_folder(owner: Owner, spec: ModelDeploymentSpec) -> list[Object]:
    """Each pod of a group opens an adapter's files itself, under the path that the agent names to the leader."""
    group = {"fieldRef": {"fieldPath": f"metadata.labels['{GROUP_INDEX}']"}}
    return [
        {"name": "TUNESMITH_GROUP", "valueFrom": group},
        {"name": "TUNESMITH_ADAPTERS_FOLDER", "value": group_adapters(owner, spec, "$(TUNESMITH_GROUP)")},
    ]
