"""ModelDeployment: vLLM pods that serve a base and adapters, which change without a restart."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from tunesmith.api.base import (
    ATOMIC,
    Conditions,
    Model,
    ModelSource,
    NameRef,
    Resources,
    Source,
    Time,
    list_map,
    rule,
    rules,
)

ServedName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-zA-Z0-9]([-._a-zA-Z0-9]*[a-zA-Z0-9])?$")]

# Their state is one ConfigMap, and their status one resource.
MAX_ADAPTERS = 1024


class Smoke(Model):
    """A request that every new version of an adapter must answer before clients get its answers."""

    prompt: Annotated[str, Field(min_length=1, max_length=8192)]
    """The prompt, sent as it is, at temperature 0."""
    max_tokens: Annotated[int, Field(ge=1, le=512)] = 16
    """Longest answer, in tokens."""
    contains: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """Text that the answer must have."""
    differs_from_base: bool = True
    """Whether the answer must differ from the one of the model without the adapter."""


class Canary(Source):
    """A new version of an adapter, for a part of the requests at first."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "[has(self.uri), has(self.fineTuneJobRef)].filter(x, x).size() == 1 && !has(self.mergeJobRef)",
                "exactly one of uri and fineTuneJobRef must be set",
            )
        )
    )
    percents: Annotated[
        list[Annotated[int, Field(ge=1, le=100)]], Field(min_length=1, max_length=10, json_schema_extra=ATOMIC)
    ] = [10]
    """Percent of the adapter's requests that the new version answers, step after step."""
    window_seconds: Annotated[int, Field(ge=1, le=604_800)] = 300
    """How long each step lasts at least."""
    min_requests: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    """Requests that the new version must have answered in each step."""
    max_error_percent: Annotated[int, Field(ge=0, le=99)] = 5
    """Errors (answers 5xx, and those cut short) of these requests, in percent. With more, and more than the old
    version has meanwhile, the new version is taken back."""


class Adapter(Source):
    """A LoRA adapter that is served under its name."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "[has(self.uri), has(self.fineTuneJobRef)].filter(x, x).size() == 1 && !has(self.mergeJobRef)",
                "exactly one of uri and fineTuneJobRef must be set",
            )
        )
    )
    name: ServedName
    """The model name that clients ask for."""
    required: Literal["Always", "Never"] = "Never"
    """Always: a pod is not Ready before it serves this adapter."""
    replicas: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Number of pods that serve this adapter, behind a Service of its own (status.adapters[].url). Default: all."""
    smoke: Smoke | None = None
    """A request that every new version must answer before it replaces the old one."""
    canary: Canary | None = None
    """A new version, which gets a part of the requests beside the one that is named above, and then, by its errors,
    takes its place or is taken back (status.adapters[].canary). Needs `gateway`. Move its address to `uri` before the
    next one."""


class AdapterSelector(Model):
    """FineTuneJobs by their labels."""

    match_labels: Annotated[dict[str, Annotated[str, Field(max_length=63)]], Field(min_length=1, max_length=16)]
    """Labels that a FineTuneJob of this namespace must have. What it made is served under the job's name from when it
    succeeded, without a further apply. An entry of `adapters` with the same name comes first."""


class AdapterRollout(Model):
    """How a new version of an adapter replaces the old one: pod after pod, and taken back where a pod cannot serve
    it. A replaced pod goes on serving all the time: requests that come in the moment of the switch wait for it.
    """

    max_unavailable: Annotated[int, Field(ge=1, le=1000)] = 1
    """Pods that switch at the same time."""


class Autoscaling(Model):
    """An autoscaler that writes `replicas` through /scale."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule("self.minReplicas <= self.maxReplicas", "minReplicas must be at most maxReplicas"),
            rule(
                "has(self.queueLength) || has(self.cacheUsagePercent)",
                "set queueLength, cacheUsagePercent or both",
            ),
            rule("(self.scaler == 'KEDA') == has(self.prometheus)", "prometheus must be set for KEDA, and only for it"),
            rule("self.minReplicas > 0 || self.scaler == 'KEDA'", "only KEDA scales to zero"),
        )
    )
    scaler: Literal["HPA", "KEDA"] = "HPA"
    """HPA: a HorizontalPodAutoscaler; the cluster must serve vLLM's metrics as custom metrics of pods (for example by
    prometheus-adapter). KEDA: a ScaledObject that asks Prometheus."""
    min_replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """Fewest pods."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)]
    """Most pods."""
    queue_length: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Waiting requests per pod that are aimed at (`vllm:num_requests_waiting`)."""
    cache_usage_percent: Annotated[int, Field(ge=1, le=100)] | None = None
    """Use of the KV cache that is aimed at (`vllm:kv_cache_usage_perc`)."""
    scale_down_seconds: Annotated[int, Field(ge=0, le=3600)] = 300
    """How long fewer pods must have been enough before there are fewer."""
    prometheus: Annotated[str, Field(max_length=512, pattern=r"^https?://.+$")] | None = None
    """Address of Prometheus, for KEDA."""


class GatewayRef(Model):
    """A Gateway, or a listener of it."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the Gateway."""
    namespace: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """Its namespace. Default: this one."""
    section_name: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """Name of a listener. Default: all of them."""


class HTTPRoute(Model):
    """An HTTPRoute of the Gateway API, from a Gateway of the cluster's to this deployment."""

    parent_refs: Annotated[list[GatewayRef], Field(min_length=1, max_length=32, json_schema_extra=ATOMIC)]
    """The Gateways."""
    hostnames: Annotated[
        list[Annotated[str, Field(max_length=253)]], Field(max_length=16, json_schema_extra=ATOMIC)
    ] = []
    """Host names that are meant. Default: all that the Gateway takes."""


class Gateway(Model):
    """Pods in front of the engines: each request goes to a pod that serves its adapter."""

    replicas: Annotated[int, Field(ge=1, le=50)] = 2
    """Number of gateway pods."""
    hold_seconds: Annotated[int, Field(ge=0, le=3600)] = 300
    """How long a request waits for a pod while there is none."""
    max_held: Annotated[int, Field(ge=0, le=10_000)] = 256
    """Requests that may wait in each gateway pod; more are answered with 503 and Retry-After."""
    idle_seconds: Annotated[int, Field(ge=10, le=604_800)] | None = None
    """Without a request for this long, no engine runs; the next request starts them, and waits. Default: they run
    always."""
    http_route: HTTPRoute | None = None
    """Also an HTTPRoute, for a cluster with the Gateway API."""
    resources: Resources = Resources(requests={"cpu": "50m", "memory": "128Mi"}, limits={"memory": "1Gi"})
    """Of each gateway's container."""


class Engine(Model):
    """The vLLM server."""

    dtype: Literal["Auto", "BFloat16", "Float16", "Float32"] = "Auto"
    """Type of weights and activations. Auto: vLLM's choice."""
    max_model_len: Annotated[int, Field(ge=16, le=100_000_000)] | None = None
    """Longest prompt plus answer, in tokens. Default: the model's."""
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] | None = None
    """Largest rank of an adapter. A change restarts the pods. Default: at first the smallest that is enough for the
    adapters as far as their ranks are known, at least 64; see `resize`."""
    max_loras: Annotated[int, Field(ge=1, le=256)] | None = None
    """Adapters in one batch. A change restarts the pods. Default: at first the number of adapters, 8 to 32."""
    max_cpu_loras: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Adapters in the engine's memory; others are read from disk again at their next request. A change restarts the
    pods. Default: at first twice the number of adapters, at least 32."""
    resize: Literal["Never", "Allowed"] = "Never"
    """Whether pods are restarted, one after the other, when an adapter needs more than the defaults above were at
    first. Never: the condition `Sized` says what is needed."""
    args: Annotated[list[Annotated[str, Field(max_length=1024)]], Field(max_length=64, json_schema_extra=ATOMIC)] = []
    """More arguments of vLLM's server, for example `--enforce-eager`."""
    nodes: Annotated[int, Field(ge=1, le=64)] = 1
    """Pods over which one copy of the model is spread, for a model that does not fit one node. More than 1 needs the
    controller of LeaderWorkerSets in the cluster, and a `modelCache` on a claim."""
    tensor_parallel: Annotated[int, Field(ge=1, le=512)] | None = None
    """Devices that share each layer (vLLM's `--tensor-parallel-size`). Default: the GPUs of a pod."""
    pipeline_parallel: Annotated[int, Field(ge=1, le=64)] | None = None
    """Stages into which the layers are divided (`--pipeline-parallel-size`). Default: `nodes`, or 1 where
    tensorParallel is given and goes over all of them."""
    startup_timeout_seconds: Annotated[int, Field(ge=30, le=86400)] = 1800
    """How long a pod may take to load the model."""
    drain_seconds: Annotated[int, Field(ge=0, le=300)] = 5
    """How long a pod that is to end goes on taking requests, until every client knows that it is leaving."""
    shutdown_timeout_seconds: Annotated[int, Field(ge=0, le=3600)] = 60
    """How long requests that are being answered get after that. The pod's grace period follows from both."""


class CacheClaim(Model):
    """A claim that keeps models which were fetched."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the PersistentVolumeClaim. For pods on several nodes it must allow ReadWriteMany."""
    keep_days: Annotated[int, Field(ge=1, le=3650)] = 14
    """A model that no pod has used for this long is removed when another one is fetched."""


class ModelCache(Model):
    """Where the model comes from when a pod starts."""

    model_config = ConfigDict(
        json_schema_extra=rules(rule("(self.type == 'Claim') == has(self.claim)", "claim must be set for Claim only"))
    )
    type: Literal["Claim", "ImageVolume"]
    """Claim: one pod fetches the model onto the claim, the others wait for it, and later ones find it there.
    ImageVolume: the kubelet pulls an `oci://` image and mounts it (Kubernetes 1.33 and containerd 2.1, or later)."""
    claim: CacheClaim | None = None
    """The claim."""


class ModelDeploymentSpec(Model):
    """Which model to serve, with which adapters."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.modelCache) || self.modelCache.type != 'ImageVolume' || "
                "(has(self.model.uri) && self.model.uri.startsWith('oci://'))",
                "modelCache.type ImageVolume mounts images: model.uri must begin with oci://",
            ),
            rule(
                "!has(self.engine) || !has(self.engine.nodes) || self.engine.nodes == 1 || "
                "(has(self.modelCache) && self.modelCache.type == 'Claim')",
                "engine.nodes above 1 needs modelCache.type Claim: all pods of a group read the same files there",
            ),
            rule(
                "!has(self.adapters) || self.adapters.all(a, a.name != self.modelName)",
                "an adapter cannot have the name of the model itself (modelName)",
            ),
            rule(
                "has(self.gateway) || !has(self.adapters) || self.adapters.all(a, !has(a.canary))",
                "adapters[].canary needs gateway: it splits the requests",
            ),
            rule(
                "has(self.gateway) || !has(self.autoscaling) || self.autoscaling.minReplicas > 0",
                "autoscaling.minReplicas 0 needs gateway: it holds the requests that bring the first pod back",
            ),
            rule(
                "!has(self.autoscaling) || self.autoscaling.minReplicas > 0 || has(self.autoscaling.queueLength)",
                "autoscaling.minReplicas 0 needs queueLength: where there is no pod, requests can only wait",
            ),
        )
    )
    model: ModelSource
    """The model to serve. A change restarts the pods."""
    model_cache: ModelCache | None = None
    """Keep the fetched model, so that a pod that starts need not fetch it. Default: each pod fetches its own copy."""
    model_name: ServedName = "base"
    """The name under which clients ask for the model itself."""
    adapters: Annotated[list[Adapter], Field(max_length=MAX_ADAPTERS, json_schema_extra=list_map("name"))] = []
    """LoRA adapters, each under its own name. Changes are live without a restart."""
    adapter_selector: AdapterSelector | None = None
    """More adapters: what FineTuneJobs with these labels made."""
    adapter_rollout: AdapterRollout = AdapterRollout()
    """How a new version of an adapter replaces the old one."""
    replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """Number of pods. With `autoscaling`, leave it out: the autoscaler writes it."""
    autoscaling: Autoscaling | None = None
    """Let an autoscaler choose the number of pods."""
    api_key_secret_ref: NameRef | None = None
    """Secret with the API keys of clients: each of its values is one, sent as `Authorization: Bearer <key>`. A change
    counts within about a minute, without a restart. Default: no key is asked for."""
    gateway: Gateway | None = None
    """Send requests through gateway pods (docs/gateway.md). Default: clients' connections go to the engines' pods."""
    engine: Engine = Engine()
    """The vLLM server."""
    resources: Resources = Resources()
    """Of the engine's container."""


class PodAdapter(Model):
    """An adapter in a pod in which it is not as it should be."""

    pod: Annotated[str, Field(max_length=253)]
    """Name of the pod."""
    restarts: int = 0
    """Restarts of its engine."""
    state: Literal["Loading", "Ready", "Failed"]
    """As in the adapter's own status."""
    digest: Annotated[str, Field(max_length=80)] | None = None
    """`sha256:` of the version that it serves. Absent: none."""
    reason: Annotated[str, Field(max_length=63)] | None = None
    """One word: why."""
    message: Annotated[str, Field(max_length=1024)] | None = None
    """The same for people."""
    attempts: int = 0
    """Failed attempts."""
    next_retry: Time | None = None
    """When it is tried again. Absent: not before its source, or the spec, changes."""


class CanaryStatus(Model):
    """A new version of an adapter that is tried, or was."""

    uri: Annotated[str, Field(max_length=1024)] | None = None
    """The version, resolved."""
    state: Literal["Loading", "Running", "Promoting", "Promoted", "RolledBack"]
    """Loading, Running (gets its part of the requests), Promoting (gets all of them while it takes the old one's
    place), Promoted or RolledBack."""
    percent: int = 0
    """Of the requests, now."""
    requests: int = 0
    """Answered by it in this step, as far as gateways that run know."""
    errors: int = 0
    """Of these, 5xx or cut short."""
    reason: Annotated[str, Field(max_length=63)] | None = None
    """One word: what it waits for, or why it was taken back."""
    message: Annotated[str, Field(max_length=1024)] | None = None
    """The same for people."""


class GatewayReport(Model):
    """The gateway's pods."""

    replicas: int = 0
    """Number of pods."""
    ready_replicas: int = 0
    """Number of pods that take requests."""
    held: int = 0
    """Requests that wait for an engine."""
    http_route: bool = False
    """Whether an HTTPRoute was made."""


class AdapterStatus(Model):
    """One adapter, as the pods' engines report it."""

    name: Annotated[str, Field(max_length=63)]
    """The adapter's name."""
    state: Literal["Waiting", "Loading", "Ready", "Failed"]
    """Waiting (for its job), Loading, Ready (on every pod that should serve it) or Failed."""
    uri: Annotated[str, Field(max_length=1024)] | None = None
    """Where it comes from, resolved."""
    digest: Annotated[str, Field(max_length=80)] | None = None
    """`sha256:` of the version that is served."""
    desired_pods: int = 0
    """Pods that should serve it."""
    ready_pods: int = 0
    """Pods that serve this version."""
    failed_pods: int = 0
    """Pods that cannot load this version."""
    reason: Annotated[str, Field(max_length=63)] | None = None
    """One word: what it waits for, or why it failed."""
    message: Annotated[str, Field(max_length=2048)] | None = None
    """What it waits for, or why it failed and what to do."""
    attempts: int = 0
    """Most failed attempts of a pod."""
    next_retry: Time | None = None
    """When the next pod tries again. Absent: none does before its source, or the spec, changes."""
    url: Annotated[str, Field(max_length=512)] | None = None
    """Address of the pods that serve it, where it has `replicas`."""
    canary: CanaryStatus | None = None
    """The new version that is tried, or was."""
    pods: Annotated[list[PodAdapter], Field(max_length=16, json_schema_extra=ATOMIC)] = []
    """Pods in which it is not as it should be; the first 16, or none where there would be too many in all."""


class ServingMemory(Model):
    """The estimate of what an engine needs, in bytes, over all its devices."""

    weights_bytes: int
    """Weights of the model."""
    adapters_bytes: int
    """Set aside for adapters."""
    kv_bytes_per_token: int
    """KV cache of one token."""
    max_model_len: int
    """Longest prompt plus answer."""
    total_bytes: int
    """Weights, adapters, and the KV cache of one longest request."""
    available_bytes: int | None = None
    """What there is. Absent where it is not known."""
    kv_tokens: int | None = None
    """Tokens that the KV cache can hold then, of all requests together."""
    summary: Annotated[str, Field(max_length=2048)]
    """The same for people, and what would fit where it does not."""


class ModelDeploymentStatus(Model):
    """What the operator and the pods report."""

    conditions: Conditions = []
    """`Ready`, `AdaptersReady`, `Sized` and `Fits`."""
    observed_generation: int | None = None
    """The generation of the spec that this status speaks of."""
    replicas: int | None = None
    """Number of pods, ready or not."""
    ready_replicas: int | None = None
    """Number of pods that serve."""
    autoscaler: Literal["HPA", "KEDA"] | None = None
    """The autoscaler that was made."""
    nodes: int | None = None
    """Pods of each replica, where it is a group."""
    selector: Annotated[str, Field(max_length=1024)] | None = None
    """Label selector of the pods, for autoscalers."""
    url: Annotated[str, Field(max_length=512)] | None = None
    """Address of the OpenAI-compatible API inside the cluster."""
    gateway: GatewayReport | None = None
    """The gateway's pods, where there are any."""
    memory: ServingMemory | None = None
    """The estimate of what an engine needs."""
    adapters: Annotated[list[AdapterStatus], Field(max_length=MAX_ADAPTERS, json_schema_extra=ATOMIC)] = []
    """The adapters, one by one."""
    adapters_summary: Annotated[str, Field(max_length=32)] | None = None
    """Ready adapters of those wanted, for example 2/2."""


class ModelDeployment(Model):
    """Serves a model and its adapters behind an OpenAI-compatible Service."""

    spec: ModelDeploymentSpec
    """What is wanted."""
    status: ModelDeploymentStatus = ModelDeploymentStatus()
    """What was observed."""
