"""The desired adapters (operator -> agent) and what became of them (agent -> operator).

The desired state is the key `state.json` of the ConfigMap `<deployment>-adapters`, mounted into the agent's
container, so that a pod gets its adapters back with the operator down. The operator also sends it to
`PUT :9500/state` (bearer: the admin token), so that a change lands at once. The higher revision wins.
"""

from __future__ import annotations

import hashlib
from typing import Literal, Self

from tunesmith.api.base import Model
from tunesmith.training.plan import Place

ENGINE_PORT = 8000
AGENT_PORT = 9500

STATE_FOLDER = "/etc/tunesmith/state"
STATE_FILE = f"{STATE_FOLDER}/state.json"
ADMIN_FOLDER = "/etc/tunesmith/admin"
TOKEN_FILE = f"{ADMIN_FOLDER}/token"
API_KEYS_FOLDER = "/etc/tunesmith/api-keys"
ADAPTERS_FOLDER = "/var/lib/tunesmith/adapters"
GUARD_FOLDER = "/var/lib/tunesmith/guard"
PLUGIN = "tunesmith"
"""Name of the vLLM plugin in that folder (agent/plugin.py)."""


class Version(Place):
    """Where the files of one version of an adapter are mounted (`path`), or will be fetched from."""

    fetch: bool = False
    """Whether `uri` must be fetched first."""
    secret: str | None = None
    """Folder of the mounted Secret with the credentials for `uri`."""


class Smoke(Model):
    """A request that a version must answer before clients get its answers."""

    prompt: str
    max_tokens: int
    contains: str | None = None
    """Text that the answer must have."""
    differs: bool = True
    """Whether the answer must differ from the base's."""


class DesiredAdapter(Version):
    """One adapter that the engine should serve.

    Each pod has a weight for each adapter. Two bounds say which pods are meant, in the same few bytes for any number
    of them, and a pod that comes while the operator is down knows what to do.
    """

    name: str
    required: bool = False
    """Whether the pod is not Ready before the engine serves it."""
    smoke: Smoke | None = None
    placed: str | None = None
    """Pods up to this weight serve it. None: all."""
    updated: str | None = None
    """Of these, pods up to this weight serve this version, the others `previous`. None: all serve this version."""
    previous: Version | None = None
    ahead: Version | None = None
    """What this pod will serve next, to be made ready beforehand. Set by State.of."""
    rejected: Rejected | None = None
    """For the operator: the version that was tried last, and taken back."""
    trial: Trial | None = None
    """For the operator: the version that is tried on a part of the requests, or was."""

    @property
    def version(self) -> Version:
        """The version to serve."""
        return Version(uri=self.uri, path=self.path, fetch=self.fetch, secret=self.secret)

    def with_version(self, version: Version, **more: object) -> Self:
        """The same adapter in another version."""
        return self.model_copy(update={**version.__dict__, **more})

    def of(self, uid: str) -> Self | None:
        """What this means for one pod. None: nothing."""
        mine = weight(self.name, uid)
        if self.placed is not None and mine > self.placed:
            return None
        if self.updated is None or self.previous is None or mine <= self.updated:
            return self
        return self.with_version(self.previous, ahead=self.version, previous=None)


class Rejected(Model):
    """A version that a pod could not serve."""

    uri: str
    generation: int
    """Of the spec. A later one is a new try."""
    reason: str
    message: str
    rank: int | None = None
    """What it needs, where the engine serves smaller ranks only."""


class Trial(Model):
    """A new version of an adapter on a part of the requests."""

    id: str
    """Tells it from other trials: of the version, and of the conditions under which it is tried."""
    version: Version
    state: Literal["Loading", "Running", "Promoting", "Promoted", "RolledBack"] = "Loading"
    step: int = 0
    """Of the percents that the spec names, from 0."""
    since: str = ""
    """When this step began."""
    reason: str | None = None
    message: str | None = None


DesiredAdapter.model_rebuild()
ALL = "f" * 16
NONE = ""


def weight(adapter: str, uid: str) -> str:
    """A pod's weight for an adapter: the pods with the lowest ones serve it (rendezvous hashing), so that a pod that
    comes or goes moves no adapter between the others.
    """
    return hashlib.sha256(f"{adapter} {uid}".encode()).hexdigest()[:16]


class State(Model):
    """What the pods should serve."""

    revision: int
    model_name: str
    model_path: str
    max_lora_rank: int
    max_loras: int = 0
    """For the operator: what the engine's arguments say, as derived. 0: not yet."""
    max_cpu_loras: int = 0
    adapters: list[DesiredAdapter] = []

    def of(self, uid: str) -> State:
        """What this means for one pod."""
        return self.model_copy(update={"adapters": [mine for one in self.adapters if (mine := one.of(uid))]})


class ObservedAdapter(Model):
    """One adapter in one pod."""

    name: str
    uri: str
    state: Literal["Loading", "Ready", "Failed"]
    digest: str | None = None
    """Hex sha256 of the version that the engine serves."""
    reason: str | None = None
    message: str | None = None
    attempts: int = 0
    permanent: bool = False
    """Whether the same version would fail again, so that it is not tried again."""
    next_retry: str | None = None
    rank: int | None = None
    """What it needs, where the engine serves smaller ranks only."""


class Footprint(Model):
    """What the model takes of the engine's memory."""

    weights_bytes: int
    kv_bytes_per_token: int
    """0: the model's configuration does not tell."""
    adapters_bytes: int
    """Set aside for adapters, used or not."""
    max_model_len: int
    """The model's own limit."""
    quantization: str | None = None
    """How its weights are quantised, by its config.json."""


class AgentStatus(Model):
    """`GET :9500/status`."""

    revision: int
    pod_uid: str = ""
    """Whose status this is: an address outlives its pod."""
    engine: Literal["Starting", "Ready"]
    ready: bool
    """Whether the engine answers and serves every required adapter."""
    waiting: str | None = None
    """What the engine waits for before it starts, for people."""
    footprint: Footprint | None = None
    adapters: list[ObservedAdapter] = []
