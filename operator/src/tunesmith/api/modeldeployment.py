"""ModelDeployment: vLLM pods that serve a base and adapters, which change without a restart."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from tunesmith.api.base import (
    ATOMIC,
    Conditions,
    Model,
    ModelSource,
    Resources,
    Source,
    list_map,
    rule,
    rules,
)

ServedName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-zA-Z0-9]([-._a-zA-Z0-9]*[a-zA-Z0-9])?$")]


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


class Engine(Model):
    """The vLLM server."""

    dtype: Literal["Auto", "BFloat16", "Float16", "Float32"] = "Auto"
    """Type of weights and activations. Auto: vLLM's choice."""
    max_model_len: Annotated[int, Field(ge=16, le=100_000_000)] | None = None
    """Longest prompt plus answer, in tokens. Default: the model's."""
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = 64
    """Largest rank of an adapter. A change restarts the pods."""
    max_loras: Annotated[int, Field(ge=1, le=256)] = 8
    """Adapters in one batch. A change restarts the pods."""
    args: Annotated[list[Annotated[str, Field(max_length=1024)]], Field(max_length=64, json_schema_extra=ATOMIC)] = []
    """More arguments of vLLM's server, for example `--enforce-eager`."""
    startup_timeout_seconds: Annotated[int, Field(ge=30, le=86400)] = 1800
    """How long a pod may take to load the model."""


class ModelDeploymentSpec(Model):
    """Which model to serve, with which adapters."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.adapters) || self.adapters.all(a, a.name != self.modelName)",
                "an adapter cannot have the name of the model itself (modelName)",
            )
        )
    )
    model: ModelSource
    """The model to serve. A change restarts the pods."""
    model_name: ServedName = "base"
    """The name under which clients ask for the model itself."""
    adapters: Annotated[list[Adapter], Field(max_length=128, json_schema_extra=list_map("name"))] = []
    """LoRA adapters, each under its own name. Changes are live without a restart."""
    replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """Number of pods."""
    engine: Engine = Engine()
    """The vLLM server."""
    resources: Resources = Resources()
    """Of the engine's container."""


class AdapterStatus(Model):
    """One adapter, as the pods' engines report it."""

    name: Annotated[str, Field(max_length=63)]
    """The adapter's name."""
    state: Literal["Waiting", "Loading", "Ready", "Failed"]
    """Waiting (for its job), Loading, Ready (on every ready pod) or Failed."""
    uri: Annotated[str, Field(max_length=1024)] | None = None
    """Where it comes from, resolved."""
    digest: Annotated[str, Field(max_length=80)] | None = None
    """`sha256:` of the version that is served."""
    ready_pods: int = 0
    """Pods that serve this version."""
    message: Annotated[str, Field(max_length=2048)] | None = None
    """What it waits for, or why it failed and what to do."""


class ModelDeploymentStatus(Model):
    """What the operator and the pods report."""

    conditions: Conditions = []
    """`Ready`, and `AdaptersReady`."""
    observed_generation: int | None = None
    """The generation of the spec that this status speaks of."""
    replicas: int | None = None
    """Number of pods, ready or not."""
    ready_replicas: int | None = None
    """Number of pods that serve."""
    selector: Annotated[str, Field(max_length=1024)] | None = None
    """Label selector of the pods, for autoscalers."""
    url: Annotated[str, Field(max_length=512)] | None = None
    """Address of the OpenAI-compatible API inside the cluster."""
    adapters: Annotated[list[AdapterStatus], Field(max_length=128, json_schema_extra=list_map("name"))] = []
    """The adapters, one by one."""
    adapters_summary: Annotated[str, Field(max_length=32)] | None = None
    """Ready adapters of those wanted, for example 2/2."""


class ModelDeployment(Model):
    """Serves a model and its adapters behind an OpenAI-compatible Service."""

    spec: ModelDeploymentSpec
    """What is wanted."""
    status: ModelDeploymentStatus = ModelDeploymentStatus()
    """What was observed."""
