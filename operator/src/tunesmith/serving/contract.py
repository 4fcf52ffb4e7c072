"""The desired adapters (operator -> agent) and what became of them (agent -> operator).

The desired state is the key `state.json` of the ConfigMap `<deployment>-adapters`, mounted into the agent's
container, so that a pod gets its adapters back with the operator down. The operator also sends it to
`PUT :9500/state` (bearer: the admin token), so that a change lands at once. The higher revision wins.
"""

from __future__ import annotations

from typing import Literal

from tunesmith.api.base import Model
from tunesmith.training.plan import Place

ENGINE_PORT = 8000
AGENT_PORT = 9500

STATE_FOLDER = "/etc/tunesmith/state"
STATE_FILE = f"{STATE_FOLDER}/state.json"
ADMIN_FOLDER = "/etc/tunesmith/admin"
TOKEN_FILE = f"{ADMIN_FOLDER}/token"
ADAPTERS_FOLDER = "/var/lib/tunesmith/adapters"
GUARD_FOLDER = "/var/lib/tunesmith/guard"


class DesiredAdapter(Place):
    """One adapter that the engine should serve. `path` is where its files are mounted or will be fetched to."""

    name: str
    fetch: bool = False
    """Whether `uri` must be fetched to `path` first."""
    secret: str | None = None
    """Folder of the mounted Secret with the credentials for `uri`."""
    required: bool = False
    """Whether the pod is not Ready before the engine serves it."""


class State(Model):
    """What a pod should serve."""

    revision: int
    model_name: str
    model_path: str
    max_lora_rank: int
    adapters: list[DesiredAdapter] = []


class ObservedAdapter(Model):
    """One adapter in one pod."""

    name: str
    uri: str
    state: Literal["Loading", "Ready", "Failed"]
    digest: str | None = None
    """Hex sha256 of the version that the engine serves."""
    message: str | None = None
    attempts: int = 0


class AgentStatus(Model):
    """`GET :9500/status`."""

    revision: int
    engine: Literal["Starting", "Ready"]
    ready: bool
    """Whether the engine answers and serves every required adapter."""
    waiting: str | None = None
    """What the engine waits for before it starts, for people."""
    adapters: list[ObservedAdapter] = []
