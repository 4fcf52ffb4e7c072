"""Settings of the process in the cluster, from its environment (`TUNESMITH_CONSOLE_*`; the chart sets them)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from tunesmith.addresses import host_port

PREFIX = "TUNESMITH_CONSOLE_"
PAGES = Path(__file__).parent / "pages"
"""Where images and wheels have the built pages."""


class Settings(BaseModel):
    """One field is one environment variable: `port` is TUNESMITH_CONSOLE_PORT."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    server: str
    """The API server's address."""
    authority: Path = Path("/etc/kubernetes-ca/ca.crt")
    """Its certificate authority."""
    pages: Path = PAGES
    """The pages, built."""
    port: int = Field(default=8080, ge=0, le=65535)
    """Of the console."""


def load(environment: Mapping[str, str] = os.environ) -> Settings:
    """The settings of this process. Raises pydantic.ValidationError."""
    host = environment.get("KUBERNETES_SERVICE_HOST", "")
    address = f"https://{host_port(host, environment.get('KUBERNETES_SERVICE_PORT', '443'))}"
    found = {"server": address} if host else {}
    for name in Settings.model_fields:
        if environment.get(PREFIX + name.upper()):
            found[name] = environment[PREFIX + name.upper()]
    return Settings.model_validate(found)
