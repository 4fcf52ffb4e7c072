"""The objects of a ModelDeployment: Deployment, Service, ConfigMap of desired adapters, Secret and PDB."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from dataclasses import replace

from tunesmith.api.modeldeployment import Adapter, ModelDeploymentSpec
from tunesmith.children.meta import ROLE_LABEL, Object, Owner
from tunesmith.children.pods import (
    ENVIRONMENT,
    SCRATCH,
    Input,
    container,
    mounts,
    pod_spec,
    pull_secrets,
    secret_volume,
    secret_volumes,
)
from tunesmith.serving.contract import (
    ADAPTERS_FOLDER,
    ADMIN_FOLDER,
    AGENT_PORT,
    API_KEYS_FOLDER,
    ENGINE_PORT,
    GUARD_FOLDER,
    PLUGIN,
    STATE_FOLDER,
    TOKEN_FILE,
    State,
)
from tunesmith.serving.parallel import parallelism
from tunesmith.settings import Settings
from tunesmith.training.location import SECRETS

DTYPES = {"Auto": "auto", "BFloat16": "bfloat16", "Float16": "float16", "Float32": "float32"}
# What the agent needs after the engine has ended, and what a clock may be off.
SPARE_SECONDS = 10


STATE_KEY = "state.json"
ROTATED = "tunesmith.io/rotated-at"
ADAPTER_LABEL = "tunesmith.io/adapter"
ENGINE, WORKER = "engine", "engine-worker"
ENGINES = "engines"
"""Ends the name of the headless Service of all engines, which is no adapter's."""
SERVER = ["python3", "-m", "vllm.entrypoints.openai.api_server"]


def deployment_name(owner: Owner) -> str:
    """Name of the Deployment."""
    return f"{owner.name}-engine"


def adapters_name(owner: Owner) -> str:
    """Name of the ConfigMap with the desired adapters."""
    return f"{owner.name}-adapters"


def admin_name(owner: Owner) -> str:
    """Name of the Secret with the admin token."""
    return f"{owner.name}-admin"


def pod_labels(owner: Owner) -> dict[str, str]:
    """Labels of the pods that clients talk to."""
    return {**owner.labels, ROLE_LABEL: ENGINE}


def service_name(owner: Owner, adapter: str) -> str:
    """Name of an adapter's own Service: readable where the adapter's name allows it, and never another's."""
    plain = f"{owner.name}-{adapter}"
    if len(plain) <= 63 and adapter == adapter.lower() and adapter.replace("-", "").isalnum() and adapter != ENGINES:
        return plain
    digest = hashlib.sha256(adapter.encode()).hexdigest()[:8]
    slug = re.sub(r"[^a-z0-9]+", "-", adapter.lower()).strip("-")
    return f"{owner.name}-{slug}"[:54].rstrip("-") + f"-{digest}"


def own_names(owner: Owner, adapters: Iterable[Adapter]) -> list[tuple[str, str]]:
    """(kind, name) of the Services of adapters that are not on all pods."""
    return [("Service", service_name(owner, one.name)) for one in adapters if one.replicas]


def admin_secret(owner: Owner, token: str, previous: str, made: str) -> Object:
    """The token that guards the administration of adapters. Pods learn a new one within a minute or so; until then
    the operator uses the previous one with them.
    """
    body = owner.child("v1", "Secret", admin_name(owner))
    body["metadata"]["annotations"] = {ROTATED: made}
    data = {"token": token, **({"previous": previous} if previous else {})}
    return {**body, "data": {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}}


def adapters_config_map(owner: Owner, state: State) -> Object:
    """What the agents should load: mounted, so that a pod gets its adapters back without the operator."""
    return {
        **owner.child("v1", "ConfigMap", adapters_name(owner)),
        "data": {STATE_KEY: state.model_dump_json(by_alias=True, exclude_none=True)},
    }


def service(owner: Owner) -> Object:
    """The OpenAI-compatible API."""
    return {
        **owner.child("v1", "Service", owner.name),
        "spec": {
            "selector": pod_labels(owner),
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "appProtocol": "http"}],
        },
    }


def adapter_service(owner: Owner, adapter: str) -> Object:
    """The pods that serve one adapter: a Service without a selector, as its endpoints are told one by one."""
    return {
        **owner.child("v1", "Service", service_name(owner, adapter), {ADAPTER_LABEL: adapter}),
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": ENGINE_PORT, "appProtocol": "http"}]},
    }


def adapter_endpoints(owner: Owner, adapter: str, pods: Iterable[Object]) -> Object:
    """The endpoints of that Service."""
    name = service_name(owner, adapter)
    labels = {"kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": "tunesmith.io"}
    endpoints = [
        {
            "addresses": [pod["status"]["podIP"]],
            "conditions": {"ready": True},
            "nodeName": pod["spec"].get("nodeName"),
            "targetRef": {
                "kind": "Pod",
                "namespace": owner.namespace,
                "name": pod["metadata"]["name"],
                "uid": pod["metadata"]["uid"],
            },
        }
        for pod in pods
    ]
    return {
        **owner.child("discovery.k8s.io/v1", "EndpointSlice", name, {**labels, ADAPTER_LABEL: adapter}),
        "addressType": "IPv6" if any(":" in e["addresses"][0] for e in endpoints) else "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": ENGINE_PORT, "protocol": "TCP", "appProtocol": "http"}],
    }


def disruption_budget(owner: Owner, replicas: int) -> Object | None:
    """Keeps a drain from taking the last pods. None for a single pod, which a budget would make undrainable. A group
    whose worker goes is of no use: its pods count, too.
    """
    if replicas < 2:
        return None
    roles = [{"key": ROLE_LABEL, "operator": "In", "values": [ENGINE, WORKER]}]
    return {
        **owner.child("policy/v1", "PodDisruptionBudget", owner.name),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": owner.labels, "matchExpressions": roles}},
    }


def model_arguments(spec: ModelDeploymentSpec, state: State) -> list[str]:
    """Arguments that all processes of an engine have in common. The user's own come last, so that they win."""
    engine, (tensor, pipeline) = spec.engine, parallelism(spec)
    arguments = [
        f"--model={state.model_path}",
        f"--served-model-name={spec.model_name}",
        f"--dtype={DTYPES[engine.dtype]}",
        "--enable-lora",
        f"--max-loras={state.max_loras}",
        f"--max-lora-rank={state.max_lora_rank}",
        # Adapters that fall out of this cache are read from disk again at their next request.
        f"--max-cpu-loras={state.max_cpu_loras}",
        *([f"--tensor-parallel-size={tensor}"] if tensor > 1 else []),
        *([f"--pipeline-parallel-size={pipeline}"] if pipeline > 1 else []),
    ]
    if engine.max_model_len:
        arguments.append(f"--max-model-len={engine.max_model_len}")
    return [*arguments, *engine.args]


def server_arguments(spec: ModelDeploymentSpec, state: State) -> list[str]:
    """Arguments of the process that clients talk to."""
    return [
        f"--port={ENGINE_PORT}",
        "--middleware=tunesmith_guard.Guard",
        "--disable-fastapi-docs",
        f"--shutdown-timeout={spec.engine.shutdown_timeout_seconds}",
        *model_arguments(spec, state),
    ]


def engine_environment() -> list[Object]:
    """Of all processes of an engine."""
    return [
        *ENVIRONMENT,
        {"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": "1"},
        {"name": "VLLM_PLUGINS", "value": PLUGIN},  # and no resolver: it loads whatever a model name points at
        {"name": "VLLM_NO_USAGE_STATS", "value": "1"},
        {"name": "DO_NOT_TRACK", "value": "1"},
        {"name": "VLLM_CACHE_ROOT", "value": "/tmp/vllm"},
    ]


def template(
    owner: Owner,
    spec: ModelDeploymentSpec,
    state: State,
    model: Input,
    store: str | None,
    settings: Settings,
    folder: Input | None = None,
) -> Object:
    """A pod of engine and agent, which also share `folder`, where the agent writes. `store` is the address of the
    default store where its claim exists: it is mounted always, so that an adapter that appears there later needs no
    restart.
    """
    more = [folder] if folder else []
    base = mounts([model, *more], settings)
    versions = [v for adapter in state.adapters for v in (adapter, adapter.previous) if v]
    shared = [Input(version.uri) for version in versions if not version.fetch]
    # The agent says on the cache's claim that the model is in use.
    cached = model.place.fetch and model.place.claim is not None
    known = [replace(model, writable=cached), *(replace(one, writable=True) for one in more)]
    reads = mounts([*known, *shared, *([Input(store)] if store else [])], settings)
    secrets = sorted({version.secret.rsplit("/", 1)[1] for version in versions if version.secret})
    keys = spec.api_key_secret_ref
    folders = [
        {"name": "adapters", "mountPath": ADAPTERS_FOLDER},
        {"name": "guard", "mountPath": GUARD_FOLDER},
    ]
    token = {"name": "admin", "mountPath": ADMIN_FOLDER, "readOnly": True}
    agent = container(
        "agent",
        settings.operator_image,
        settings,
        restartPolicy="Always",  # a native sidecar: starts before the engine, ends after it
        command=["python", "-m", "tunesmith.agent"],
        env=[
            {"name": "HOME", "value": "/tmp"},
            {"name": "HF_HUB_DISABLE_TELEMETRY", "value": "1"},
            {"name": "TUNESMITH_POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
            {"name": "TUNESMITH_MAX_LORA_RANK", "value": str(state.max_lora_rank)},
            {"name": "TUNESMITH_MAX_LORAS", "value": str(state.max_loras)},
            {"name": "TUNESMITH_ENGINE_DTYPE", "value": DTYPES[spec.engine.dtype]},
            *([{"name": "TUNESMITH_IN_USE", "value": model.place.path}] if cached else []),
        ],
        ports=[{"name": "agent", "containerPort": AGENT_PORT}],
        resources={"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
        # The engine starts when the agent has: not before its model is there.
        startupProbe=_probe("/startz", AGENT_PORT, period=1, failures=spec.engine.startup_timeout_seconds),
        readinessProbe=_probe("/readyz", AGENT_PORT, period=1, failures=1),
        livenessProbe=_probe("/healthz", AGENT_PORT, period=10, failures=6),
        volumeMounts=[
            *SCRATCH,
            *folders,
            token,
            {"name": "state", "mountPath": STATE_FOLDER, "readOnly": True},
            *reads.mounts,
            *({"name": secret_volume(name), "mountPath": f"{SECRETS}/{name}", "readOnly": True} for name in secrets),
        ],
    )
    engine = container(
        "engine",
        settings.engine_image,
        settings,
        command=SERVER,
        args=[*_host(settings), *server_arguments(spec, state)],
        env=[
            *engine_environment(),
            {"name": "PYTHONPATH", "value": GUARD_FOLDER},
            {"name": "TUNESMITH_ADMIN_TOKEN_FILE", "value": TOKEN_FILE},
            *([{"name": "TUNESMITH_API_KEYS_FOLDER", "value": API_KEYS_FOLDER}] if keys else []),
        ],
        ports=[{"name": "http", "containerPort": ENGINE_PORT}],
        resources=spec.resources.body(),
        startupProbe=_probe("/health", ENGINE_PORT, period=2, failures=spec.engine.startup_timeout_seconds // 2),
        readinessProbe=_probe("/health", ENGINE_PORT, period=2, failures=3),
        livenessProbe=_probe("/health", ENGINE_PORT, period=10, failures=6),
        # Endpoints forget a pod before its engine stops taking requests, and what is being answered gets time to end.
        lifecycle={"preStop": {"sleep": {"seconds": spec.engine.drain_seconds}}} if spec.engine.drain_seconds else {},
        volumeMounts=[
            *SCRATCH,
            *({**folder, "readOnly": True} for folder in folders),
            token,
            *([{"name": "api-keys", "mountPath": API_KEYS_FOLDER, "readOnly": True}] if keys else []),
            *base.mounts,
        ],
        terminationMessagePolicy="FallbackToLogsOnError",
    )
    volumes = [
        {"name": "adapters", "emptyDir": {}},
        {"name": "guard", "emptyDir": {}},
        {"name": "admin", "secret": {"secretName": admin_name(owner), "defaultMode": 0o440}},
        {"name": "state", "configMap": {"name": adapters_name(owner)}},
        *([{"name": "api-keys", "secret": {"secretName": keys.name, "defaultMode": 0o440}}] if keys else []),
        *{volume["name"]: volume for volume in [*reads.volumes, *secret_volumes(secrets)]}.values(),
    ]
    return engine_pod(pod_labels(owner), spec, engine, [*base.fetchers, agent], volumes, model, settings)


def _host(settings: Settings) -> list[str]:
    """Where the engine listens: by itself on IPv4 alone, and where there is no IPv6 it does not start if told of it."""
    return ["--host=::"] if ":" in settings.pod_ip else []


def engine_pod(
    labels: dict[str, str],
    spec: ModelDeploymentSpec,
    engine: Object,
    init: list[Object],
    volumes: list[Object],
    model: Input,
    settings: Settings,
) -> Object:
    """The template of a pod with an engine."""
    image_secret = [model.secret] if model.place.image and model.secret else []
    return {
        "metadata": {"labels": labels},
        "spec": pod_spec(
            [engine],
            init,
            volumes,
            settings,
            terminationGracePeriodSeconds=spec.engine.drain_seconds
            + spec.engine.shutdown_timeout_seconds
            + SPARE_SECONDS,
            **pull_secrets(settings, image_secret),
        ),
    }


def deployment(
    owner: Owner, spec: ModelDeploymentSpec, state: State, model: Input, store: str | None, settings: Settings
) -> Object:
    """The engine's pods, where one pod holds a whole copy of the model."""
    pod = template(owner, spec, state, model, store, settings)
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": pod_labels(owner)},
        "matchLabelKeys": ["pod-template-hash"],
    }
    return {
        **owner.child("apps/v1", "Deployment", deployment_name(owner)),
        "spec": {
            "replicas": spec.replicas,
            "selector": {"matchLabels": pod_labels(owner)},
            # A new pod serves before an old one goes.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "progressDeadlineSeconds": spec.engine.startup_timeout_seconds + 60,
            "template": {**pod, "spec": {**pod["spec"], "topologySpreadConstraints": [spread]}},
        },
    }


def _probe(path: str, port: int, *, period: int, failures: int) -> Object:
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": 5,
    }
