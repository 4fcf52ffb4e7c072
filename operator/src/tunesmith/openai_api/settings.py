"""Settings of this process, from its environment (`TUNESMITH_OPENAI_*`; the chart sets them)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from tunesmith.addresses import host_port

PREFIX = "TUNESMITH_OPENAI_"


class Settings(BaseModel):
    """One field is one environment variable: `namespace` is TUNESMITH_OPENAI_NAMESPACE."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    namespace: str = Field(min_length=1)
    """Where the jobs are made: the pod's own, since a claim is mounted in its own namespace only."""
    models: Path = Path("/etc/tunesmith/models.yaml")
    """The table of models."""
    store: str = Field(default="pvc://tunesmith-store/openai", pattern=r"^pvc://.+$")
    """Where uploads are, as jobs read them."""
    folder: Path = Path("/mnt/store/openai")
    """The same folder, as it is mounted here."""
    server: str
    """The API server's address."""
    authority: Path = Path("/etc/kubernetes-ca/ca.crt")
    """Its certificate authority."""
    port: int = Field(default=8080, ge=0, le=65535)
    """Of the API."""
    max_file_mib: int = Field(default=512, ge=1)
    """Largest upload."""


def load(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings of this process. Raises pydantic.ValidationError."""
    inside = "KUBERNETES_SERVICE_HOST" in environment
    host = environment.get("KUBERNETES_SERVICE_HOST", "")
    address = f"https://{host_port(host, environment.get('KUBERNETES_SERVICE_PORT', '443'))}"
    found = {"server": address} if inside else {}
    for name in Settings.model_fields:
        if environment.get(PREFIX + name.upper()):
            found[name] = environment[PREFIX + name.upper()]
    return Settings.model_validate(found)
