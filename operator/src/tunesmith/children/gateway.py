"""The gateway of a ModelDeployment: Deployment, Service of the engines behind it, PodDisruptionBudget and HTTPRoute."""

from __future__ import annotations

from tunesmith.api.modeldeployment import Gateway, HTTPRoute, ModelDeploymentSpec
from tunesmith.children.meta import ROLE_LABEL, Object, Owner
from tunesmith.children.pods import container, pod_spec, pull_secrets
from tunesmith.children.serving import ENGINES, SPARE_SECONDS, adapters_name, admin_name, pod_labels
from tunesmith.serving.contract import ADMIN_FOLDER, AGENT_PORT, API_KEYS_FOLDER, ENGINE_PORT
from tunesmith.serving.routes import ROUTES_FOLDER, Routes
from tunesmith.settings import Settings

ROLE = "gateway"
# Until every client knows that a pod is leaving.
DRAIN_SECONDS = 5
ROUTES_KEY = "routes.json"


def gateway_name(owner: Owner) -> str:
    """Name of its Deployment and budget."""
    return f"{owner.name}-gateway"


def engines_name(owner: Owner) -> str:
    """Name of the headless Service under which it finds the engines."""
    return f"{owner.name}-{ENGINES}"


def gateway_labels(owner: Owner) -> dict[str, str]:
    """Labels of its pods."""
    return {**owner.labels, ROLE_LABEL: ROLE}


def engines_service(owner: Owner) -> Object:
    """The addresses of the engines that are Ready."""
    return {
        **owner.child("v1", "Service", engines_name(owner)),
        "spec": {"clusterIP": "None", "selector": pod_labels(owner), "ports": [{"name": "http", "port": ENGINE_PORT}]},
    }


def gateway_budget(owner: Owner, replicas: int) -> Object | None:
    """Keeps a drain from taking the last pods. None for a single pod."""
    if replicas < 2:
        return None
    return {
        **owner.child("policy/v1", "PodDisruptionBudget", gateway_name(owner)),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": gateway_labels(owner)}},
    }


def with_routes(config_map: Object, routes: Routes) -> Object:
    """The ConfigMap of desired adapters, with the gateway's routes beside them."""
    text = routes.model_dump_json(by_alias=True)
    return {**config_map, "data": {**config_map["data"], ROUTES_KEY: text}}


def gateway_deployment(owner: Owner, spec: ModelDeploymentSpec, gateway: Gateway, settings: Settings) -> Object:
    """Its pods."""
    keys = spec.api_key_secret_ref
    ending = spec.engine.shutdown_timeout_seconds
    one = container(
        "gateway",
        settings.operator_image,
        settings,
        command=["python", "-m", "tunesmith.gateway"],
        env=[
            {"name": "HOME", "value": "/tmp"},
            {"name": "TUNESMITH_POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
            # Short: the cluster's domain need not be known.
            {"name": "TUNESMITH_ENGINES", "value": engines_name(owner)},
            {"name": "TUNESMITH_SHUTDOWN_SECONDS", "value": str(ending)},
            *([{"name": "TUNESMITH_API_KEYS_FOLDER", "value": API_KEYS_FOLDER}] if keys else []),
        ],
        ports=[{"name": "http", "containerPort": ENGINE_PORT}, {"name": "control", "containerPort": AGENT_PORT}],
        resources=gateway.resources.body(),
        readinessProbe=_probe("/readyz", 1, 2),
        livenessProbe=_probe("/healthz", 10, 6),
        lifecycle={"preStop": {"sleep": {"seconds": DRAIN_SECONDS}}},
        volumeMounts=[
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": "admin", "mountPath": ADMIN_FOLDER, "readOnly": True},
            {"name": "routes", "mountPath": ROUTES_FOLDER, "readOnly": True},
            *([{"name": "api-keys", "mountPath": API_KEYS_FOLDER, "readOnly": True}] if keys else []),
        ],
        terminationMessagePolicy="FallbackToLogsOnError",
    )
    routes = {"name": adapters_name(owner), "items": [{"key": ROUTES_KEY, "path": ROUTES_KEY}]}
    # Only what it is known by now: the operator's own words may hold what was rotated out.
    admin = {"secretName": admin_name(owner), "defaultMode": 0o440, "items": [{"key": "token", "path": "token"}]}
    volumes = [
        {"name": "admin", "secret": admin},
        {"name": "routes", "configMap": routes},
        *([{"name": "api-keys", "secret": {"secretName": keys.name, "defaultMode": 0o440}}] if keys else []),
    ]
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": gateway_labels(owner)},
        "matchLabelKeys": ["pod-template-hash"],
    }
    return {
        **owner.child("apps/v1", "Deployment", gateway_name(owner)),
        "spec": {
            "replicas": gateway.replicas,
            "selector": {"matchLabels": gateway_labels(owner)},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": gateway_labels(owner)},
                "spec": pod_spec(
                    [one],
                    [],
                    volumes,
                    settings,
                    terminationGracePeriodSeconds=DRAIN_SECONDS + ending + SPARE_SECONDS,
                    topologySpreadConstraints=[spread],
                    **pull_secrets(settings),
                ),
            },
        },
    }


def http_route(owner: Owner, wanted: HTTPRoute) -> Object:
    """From a Gateway to the deployment's Service. An answer may take its time: there is no timeout."""
    return {
        **owner.child("gateway.networking.k8s.io/v1", "HTTPRoute", owner.name),
        "spec": {
            "parentRefs": [ref.body() for ref in wanted.parent_refs],
            **({"hostnames": wanted.hostnames} if wanted.hostnames else {}),
            "rules": [
                {
                    "matches": [{"path": {"type": "PathPrefix", "value": "/"}}],
                    "backendRefs": [{"name": owner.name, "port": 80}],
                    "timeouts": {"request": "0s"},
                }
            ],
        },
    }


def _probe(path: str, period: int, failures: int) -> Object:
    return {
        "httpGet": {"path": path, "port": AGENT_PORT},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": 5,
    }
