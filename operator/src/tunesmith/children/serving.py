"""The objects of a ModelDeployment: Deployment, Service, ConfigMap of desired adapters, Secret and PDB."""

from __future__ import annotations

from tunesmith.api.modeldeployment import ModelDeploymentSpec
from tunesmith.children.meta import ROLE_LABEL, Object, Owner
from tunesmith.children.pods import (
    ENVIRONMENT,
    SCRATCH,
    SECRETS,
    Input,
    container,
    mounts,
    pod_spec,
    secret_volume,
    secret_volumes,
)
from tunesmith.serving.contract import (
    ADAPTERS_FOLDER,
    ADMIN_FOLDER,
    AGENT_PORT,
    ENGINE_PORT,
    GUARD_FOLDER,
    STATE_FOLDER,
    TOKEN_FILE,
    State,
)
from tunesmith.settings import Settings

DTYPES = {"Auto": "auto", "BFloat16": "bfloat16", "Float16": "float16", "Float32": "float32"}
# Endpoints forget a pod before its engine stops taking requests, and requests in flight get time to end.
DRAIN_SECONDS = 5
SHUTDOWN_SECONDS = 30


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
    """Labels of the engine's pods."""
    return {**owner.labels, ROLE_LABEL: "engine"}


def admin_secret(owner: Owner, token: str) -> Object:
    """The token that guards the administration of adapters. Written once."""
    return {
        **owner.child("v1", "Secret", admin_name(owner)),
        "immutable": True,
        "stringData": {"token": token},
    }


def adapters_config_map(owner: Owner, state: State) -> Object:
    """What the agents should load: mounted, so that a pod gets its adapters back without the operator."""
    return {
        **owner.child("v1", "ConfigMap", adapters_name(owner)),
        "data": {"state.json": state.model_dump_json(by_alias=True, exclude_none=True)},
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


def disruption_budget(owner: Owner, replicas: int) -> Object | None:
    """Keeps a drain from taking the last pods. None for a single pod, which a budget would make undrainable."""
    if replicas < 2:
        return None
    return {
        **owner.child("policy/v1", "PodDisruptionBudget", owner.name),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": pod_labels(owner)}},
    }


def engine_arguments(spec: ModelDeploymentSpec, state: State) -> list[str]:
    """Arguments of vLLM's server. The user's own come last, so that they win."""
    engine = spec.engine
    arguments = [
        f"--model={state.model_path}",
        f"--served-model-name={spec.model_name}",
        f"--port={ENGINE_PORT}",
        f"--dtype={DTYPES[engine.dtype]}",
        "--enable-lora",
        f"--max-loras={engine.max_loras}",
        f"--max-lora-rank={engine.max_lora_rank}",
        # Adapters that fall out of this cache are read from disk again at their next request.
        f"--max-cpu-loras={max(32, engine.max_loras)}",
        "--middleware=tunesmith_guard.Guard",
        "--disable-fastapi-docs",
        f"--shutdown-timeout={SHUTDOWN_SECONDS}",
    ]
    if engine.max_model_len:
        arguments.append(f"--max-model-len={engine.max_model_len}")
    return [*arguments, *engine.args]


def deployment(
    owner: Owner, spec: ModelDeploymentSpec, state: State, model: Input, store: str | None, settings: Settings
) -> Object:
    """The engine's pods. `store` is the address of the default store where its claim exists: it is mounted
    always, so that an adapter that appears there later needs no restart.
    """
    base = mounts([model], settings)
    shared = [Input(adapter.uri) for adapter in state.adapters if not adapter.fetch]
    reads = mounts([model, *shared, *([Input(store)] if store else [])], settings)
    secrets = sorted({adapter.secret.rsplit("/", 1)[1] for adapter in state.adapters if adapter.secret})
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
        env=[{"name": "HOME", "value": "/tmp"}, {"name": "HF_HUB_DISABLE_TELEMETRY", "value": "1"}],
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
        command=["python3", "-m", "vllm.entrypoints.openai.api_server"],
        args=engine_arguments(spec, state),
        env=[
            *ENVIRONMENT,
            {"name": "PYTHONPATH", "value": GUARD_FOLDER},
            {"name": "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "value": "1"},
            {"name": "VLLM_PLUGINS", "value": ""},  # no resolver: it loads whatever a model name points at
            {"name": "VLLM_NO_USAGE_STATS", "value": "1"},
            {"name": "DO_NOT_TRACK", "value": "1"},
            {"name": "VLLM_CACHE_ROOT", "value": "/tmp/vllm"},
            {"name": "TUNESMITH_ADMIN_TOKEN_FILE", "value": TOKEN_FILE},
        ],
        ports=[{"name": "http", "containerPort": ENGINE_PORT}],
        resources=spec.resources.body(),
        startupProbe=_probe("/health", ENGINE_PORT, period=2, failures=spec.engine.startup_timeout_seconds // 2),
        readinessProbe=_probe("/health", ENGINE_PORT, period=2, failures=3),
        livenessProbe=_probe("/health", ENGINE_PORT, period=10, failures=6),
        lifecycle={"preStop": {"sleep": {"seconds": DRAIN_SECONDS}}},
        volumeMounts=[*SCRATCH, *({**folder, "readOnly": True} for folder in folders), token, *base.mounts],
        terminationMessagePolicy="FallbackToLogsOnError",
    )
    volumes = [
        {"name": "adapters", "emptyDir": {}},
        {"name": "guard", "emptyDir": {}},
        {"name": "admin", "secret": {"secretName": admin_name(owner), "defaultMode": 0o440}},
        {"name": "state", "configMap": {"name": adapters_name(owner)}},
        *{volume["name"]: volume for volume in [*reads.volumes, *secret_volumes(secrets)]}.values(),
    ]
    return {
        **owner.child("apps/v1", "Deployment", deployment_name(owner)),
        "spec": {
            "replicas": spec.replicas,
            "selector": {"matchLabels": pod_labels(owner)},
            "progressDeadlineSeconds": spec.engine.startup_timeout_seconds + 60,
            "template": {
                "metadata": {"labels": pod_labels(owner)},
                "spec": pod_spec(
                    [engine],
                    [*base.fetchers, agent],
                    volumes,
                    terminationGracePeriodSeconds=DRAIN_SECONDS + SHUTDOWN_SECONDS + 10,
                ),
            },
        },
    }


def _probe(path: str, port: int, *, period: int, failures: int) -> Object:
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": 5,
    }
