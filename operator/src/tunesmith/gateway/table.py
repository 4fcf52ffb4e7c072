"""The routes as a gateway has them: what is mounted, and what was sent. The newest counts."""

from __future__ import annotations

import random
from pathlib import Path

from pydantic import ValidationError

from tunesmith.serving.routes import Count, Routes, Trial, canary_name


class Table:
    """Holds the routes with the highest revision, and counts what became of the requests of a trial."""

    def __init__(self, mounted: Path, rng: random.Random) -> None:
        self.mounted, self.rng = mounted, rng
        self.routes: Routes | None = None
        self.trials: dict[str, Trial] = {}
        self._seen: bytes | None = None

    def poll(self) -> str | None:
        """Look at the mounted file. What is wrong with it, if anything is."""
        try:
            content = self.mounted.read_bytes()
            if content != self._seen:
                self.offer(Routes.model_validate_json(content))
                self._seen = content
        except OSError as error:
            return f"{self.mounted}: {error.strerror}"
        except ValidationError as error:
            return f"{self.mounted}: {error}"
        return None

    def offer(self, routes: Routes) -> bool:
        """Take routes if they are newer. Whether they are what we have now."""
        if self.routes is not None and routes.revision <= self.routes.revision:
            return routes == self.routes
        self.routes = routes
        current = {split.trial for split in routes.splits.values()}
        self.trials = {key: trial for key, trial in self.trials.items() if key in current}
        return True

    @property
    def names(self) -> set[str]:
        """Adapters that engines should serve, canaries included."""
        if self.routes is None:
            return set()
        return {*self.routes.adapters, *(canary_name(name) for name in self.routes.splits)}

    def choose(self, model: str) -> tuple[str, str | None]:
        """(name that the engine knows, trial that the request counts for)."""
        split = self.routes.splits.get(model) if self.routes else None
        if split is None:
            return model, None
        tried = self.rng.random() * 100 < split.percent
        return (canary_name(model) if tried else model), split.trial

    def count(self, trial: str | None, new: bool, error: bool) -> None:
        """A request of a trial is over. One of a step that is over does not count any more."""
        if trial is None or self.routes is None or trial not in {one.trial for one in self.routes.splits.values()}:
            return
        kept = self.trials.get(trial, Trial())
        old = kept.new if new else kept.old
        more = Count(requests=old.requests + 1, errors=old.errors + error)
        self.trials[trial] = kept.model_copy(update={"new" if new else "old": more})
