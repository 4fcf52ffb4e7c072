"""Where things are, from the environment. The defaults are the contract's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tunesmith.serving import contract


@dataclass(frozen=True)
class Settings:
    """All that the agent can be told. Each field `x` is read from `TUNESMITH_X`."""

    state_file: Path = Path(contract.STATE_FILE)
    """The mounted desired state."""
    admin_token_file: Path = Path(contract.TOKEN_FILE)
    """The token for `PUT /state` here and for administering the engine."""
    adapters_folder: Path = Path(contract.ADAPTERS_FOLDER)
    """The store, shared with the engine's container at the same path."""
    guard_folder: Path = Path(contract.GUARD_FOLDER)
    """Where the engine finds the guard (its PYTHONPATH)."""
    engine_url: str = f"http://127.0.0.1:{contract.ENGINE_PORT}"
    """The engine, in the same pod."""
    engine_api_key: str = ""
    """The engine's API key, where it was started with one."""
    agent_host: str = ""
    """The address to listen on; empty: all of them, of IPv4 and IPv6."""
    agent_port: int = contract.AGENT_PORT
    """The port to listen on."""
    pod_uid: str = ""
    """The pod's UID: which adapters, and which versions of them, are its own follows from it."""
    max_lora_rank: int = 0
    """What this pod's engine was started with. 0: what the desired state says."""
    max_loras: int = 0
    """Adapters in a batch of this pod's engine."""
    engine_dtype: str = "auto"
    """Type of its weights."""
    in_use: str = ""
    """The model that was fetched to a claim, which this pod uses: `tunesmith.fetching.shared` does not remove it."""
    grace_seconds: float = 10.0
    """How long files outlive the last request that could use them."""
    blind_grace_seconds: float = 300.0
    """The same where the guard does not say which requests are in flight."""
    resync_seconds: float = 5.0
    """How often to compare all with the engine though nothing seems to have changed."""

    @classmethod
    def from_environment(cls) -> Settings:
        """Read `TUNESMITH_*`."""
        values: dict[str, object] = {}
        for name, default in vars(cls()).items():
            text = os.environ.get(f"TUNESMITH_{name.upper()}")
            if text is not None:
                values[name] = type(default)(text) if not isinstance(default, Path) else Path(text)
        return cls(**values)  # type: ignore[arg-type]
