"""What a gateway is told, from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tunesmith.serving import contract, routes

PREFIX = "TUNESMITH_"


class Settings(BaseModel):
    """Each field `x` is read from `TUNESMITH_X`."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    engines: str
    """The name that all engines' addresses are found under: a headless Service."""
    pod_uid: str = ""
    """Of the gateway's own pod."""
    routes_file: Path = Path(routes.ROUTES_FILE)
    """The mounted routes."""
    admin_token_file: Path = Path(contract.TOKEN_FILE)
    """The token for `PUT /routes`."""
    api_keys_folder: str = ""
    """The clients' keys. Empty: none is asked for."""
    host: str = ""
    """The address to listen on; empty: all of them, of IPv4 and IPv6."""
    port: int = contract.ENGINE_PORT
    """For clients."""
    control_port: int = contract.AGENT_PORT
    """For probes, Prometheus and the operator."""
    engine_port: int = contract.ENGINE_PORT
    """Of the engines."""
    agent_port: int = contract.AGENT_PORT
    """Of the agents."""
    shutdown_seconds: float = 60.0
    """How long requests get to end when the gateway is to."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read `TUNESMITH_*`. Raises pydantic.ValidationError."""
        names = {name: PREFIX + name.upper() for name in cls.model_fields}
        return cls.model_validate({name: environment[key] for name, key in names.items() if key in environment})
