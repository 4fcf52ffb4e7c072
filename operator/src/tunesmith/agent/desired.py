"""The desired state: what is mounted, what was sent, what was known before a restart. The newest counts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from tunesmith.serving.contract import State


class Desired:
    """Holds the state with the highest revision."""

    def __init__(self, mounted: Path, kept: Path, changed: Callable[[], None]) -> None:
        self.mounted = mounted
        self.kept = kept
        self.changed = changed
        self.state: State | None = None
        self.error: str | None = None
        """What is wrong with the mounted file, if anything is."""
        self._seen: bytes | None = None
        # What was sent last may not have reached the mounted file yet.
        if kept.exists():
            self._read(kept)
        self.poll()

    def poll(self) -> None:
        """Look at the mounted file again. Kubernetes swaps a symlink above it, so only the content tells."""
        self.error = self._read(self.mounted)

    def offer(self, state: State) -> bool:
        """Take a state if it is newer. Says whether it was taken or is what we have."""
        if self.state is not None and state.revision <= self.state.revision:
            return state == self.state
        self.state = state
        draft = self.kept.with_suffix(".tmp")
        self.kept.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(state.model_dump_json(by_alias=True))
        os.replace(draft, self.kept)
        self.changed()
        return True

    def _read(self, path: Path) -> str | None:
        try:
            content = path.read_bytes()
            if content == self._seen:
                return self.error
            self.offer(State.model_validate_json(content))
            self._seen = content
        except OSError as error:
            return f"{path}: {error.strerror}"
        except ValidationError as error:
            self._seen = content
            return f"{path}: {error}"
        return None
