"""The operator's settings, from its environment (`TUNESMITH_*`; the chart sets them from its values)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, Json

PREFIX = "TUNESMITH_"


class Settings(BaseModel):
    """One field is one environment variable: `operator_image` is TUNESMITH_OPERATOR_IMAGE."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    operator_image: str = "ghcr.io/tunesmith/operator:0.1.0"
    """Also the image of the agent and of the containers that fetch."""
    trainer_image: str = "ghcr.io/tunesmith/trainer:0.1.0"
    """Image of training and merging pods."""
    engine_image: str = "vllm/vllm-openai:v0.32.0"
    """Any vLLM image."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """Of all three."""
    image_pull_secrets: str = ""
    """Comma-separated names of Secrets with registry credentials, in each namespace: every pod gets them."""
    fixed_user: bool = True
    """Whether pods run as user and group 65532; else the cluster chooses, as OpenShift does."""
    default_store: str = Field(default="pvc://tunesmith-store", pattern=r"^pvc://.+$")
    """Where artefacts go if spec.output.uri is not set."""
    gang_scheduler: Literal["None", "Volcano", "Coscheduling"] = "None"
    """Who starts the pods of a group together or not at all: a PodGroup is made for it."""
    prices: Json[dict[str, float]] | dict[str, float] = {}
    """Price of one device for one hour, by resource name, as JSON: {"nvidia.com/gpu": 2.5}."""
    watch_namespaces: str = ""
    """Comma-separated. Empty: the whole cluster."""
    policy_namespaces: str = ""
    """Comma-separated. Namespaces whose serving pods the chart's NetworkPolicies cover."""
    namespace: str = "default"
    """The operator's own, for its Lease."""
    pod_name: str = "tunesmith"
    """The operator's own, as holder of the Lease."""
    pod_ip: str = ""
    """The operator's own: whether it is one of IPv6 says what engines listen on."""
    workers: int = Field(default=8, ge=1, le=256)
    """Resources that are reconciled at the same time."""
    resync_seconds: float = Field(default=300, gt=0)
    """Every resource is looked at again after this time, though nothing happened."""
    poll_seconds: float = Field(default=3, gt=0)
    """How often running jobs' progress and engines' agents are asked."""
    progress_seconds: float = Field(default=10, ge=0)
    """Progress is written to a status at most this often."""
    token_days: float = Field(default=30, gt=0)
    """The admin token of a ModelDeployment's pods is made anew after this time."""
    health_port: int = 8080
    """/healthz and /readyz."""
    metrics_port: int = 9090
    """/metrics."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Of the operator's own log lines."""

    @property
    def pull_secrets(self) -> tuple[str, ...]:
        """Names of the Secrets that every pod pulls its images with."""
        return _names(self.image_pull_secrets)

    @property
    def namespaces(self) -> tuple[str, ...]:
        """The namespaces that are watched; empty: all."""
        return _names(self.watch_namespaces)

    @property
    def covered_namespaces(self) -> tuple[str, ...]:
        """Namespaces whose serving pods the chart's NetworkPolicies cover."""
        return _names(self.policy_namespaces)


def load(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings of this process. Raises pydantic.ValidationError, which names the variable."""
    return Settings.model_validate(
        {
            name: environment[PREFIX + name.upper()]
            for name in Settings.model_fields
            if environment.get(PREFIX + name.upper())
        }
    )


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.replace(" ", "").split(",") if name)
