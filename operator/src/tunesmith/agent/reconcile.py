"""What to do next, decided from what is wanted, what the engine says and what is on disk. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from tunesmith.agent.engine import InFlight
from tunesmith.agent.store import Source

ANY_MODEL = "*"  # as in the guard: requests whose model it could not tell


@dataclass(frozen=True)
class Failure:
    """Why the last try with a source came to nothing."""

    source: Source
    message: str
    permanent: bool
    attempts: int
    retry_at: float
    """When to try again, unless permanent."""
    reason: str = "LoadFailed"
    rank: int | None = None


@dataclass(frozen=True)
class Version:
    """A checked version on disk."""

    source: Source
    path: str


@dataclass
class Record:
    """What the agent knows of one adapter beside what the engine says."""

    preparing: Source | None = None
    version: Version | None = None
    """The newest version that passed the checks."""
    good: str | None = None
    """The folder that the engine served last. It goes on serving while a newer version is bad."""
    failure: Failure | None = None
    ahead: Version | None = None
    """A checked version that will be wanted next."""
    ahead_failure: Failure | None = None
    smoked: str | None = None
    """The folder that last passed the smoke request."""

    def promote(self, source: Source) -> None:
        """Make what was prepared ahead the newest version, now that it is wanted."""
        if self.ahead and self.ahead.source == source:
            self.version, self.ahead = self.ahead, None
        if self.ahead_failure and self.ahead_failure.source == source:
            self.failure, self.ahead_failure = self.ahead_failure, None


@dataclass(frozen=True)
class View:
    """All that a decision depends on."""

    now: float
    wanted: Mapping[str, Source]
    records: Mapping[str, Record]
    engine: Mapping[str, str] | None
    """Name -> folder as the engine says; None while it is down."""
    folders: Collection[str] = ()
    """Versions on disk."""
    unloaded: Mapping[str, float] = field(default_factory=dict)
    """Folder -> when the engine last had it."""
    in_flight: Mapping[str, InFlight] | None = None
    """As the guard says; None where it does not."""
    store: str = ""
    grace: float = 10.0
    blind_grace: float = 300.0
    ahead: Mapping[str, Source] = field(default_factory=dict)
    """What will be wanted next."""


@dataclass(frozen=True)
class Prepare:
    """Fetch or copy, check, publish."""

    name: str
    source: Source


@dataclass(frozen=True)
class Load:
    """Load a version that is on disk."""

    name: str
    path: str


@dataclass(frozen=True)
class Swap:
    """Replace the version that the engine has."""

    name: str
    old: str
    path: str


@dataclass(frozen=True)
class Unload:
    """Take an adapter away that nobody wants."""

    name: str
    path: str


@dataclass(frozen=True)
class Delete:
    """Remove files that nobody can read any more."""

    path: str


Step = Prepare | Load | Swap | Unload | Delete


def decide(view: View) -> list[Step]:
    """The steps from what is to what should be. Each stands alone: one that fails stops no other."""
    steps: list[Step] = []
    for name, source in view.wanted.items():
        steps += _adapter(view, name, source)
    for name, path in (view.engine or {}).items():
        # What did not come from this store was loaded by the engine's own arguments, and is not ours to take.
        if name not in view.wanted and path.startswith(view.store + "/"):
            steps.append(Unload(name, path))
    return steps + _garbage(view)


def _adapter(view: View, name: str, source: Source) -> list[Step]:
    record = view.records.get(name, Record())
    path, steps = record.good, list[Step]()
    if not _blocked(view, record, source):
        if record.version and record.version.source == source:
            path = record.version.path
        elif record.preparing != source:
            steps.append(Prepare(name, source))
    if not steps and record.preparing is None and _is_needed_ahead(view, name, record):
        steps.append(Prepare(name, view.ahead[name]))
    if view.engine is None or path is None:
        return steps
    loaded = view.engine.get(name)
    if loaded is None:
        steps.append(Load(name, path))
    elif loaded != path:
        steps.append(Swap(name, loaded, path))
    return steps


def _is_needed_ahead(view: View, name: str, record: Record) -> bool:
    """Whether the version that comes next is neither there nor known to be bad."""
    source, failure = view.ahead.get(name), record.ahead_failure
    if source is None or source == view.wanted[name] or (record.ahead and record.ahead.source == source):
        return False
    return not (failure and failure.source == source and (failure.permanent or view.now < failure.retry_at))


def _blocked(view: View, record: Record, source: Source) -> bool:
    """Whether the source failed and it is not time to try it again."""
    failure = record.failure
    return bool(failure and failure.source == source and (failure.permanent or view.now < failure.retry_at))


def _garbage(view: View) -> list[Step]:
    """Versions that are neither wanted, nor loaded, nor in use. vLLM reads an adapter's files again whenever it
    was evicted from its cache, and dies where they are gone: hence never while it is loaded, or a request that
    began with it is running.
    """
    if view.engine is None:
        return []
    kept: set[str | None] = set(view.engine.values())
    busy = set()
    for name, source in view.wanted.items():
        record = view.records.get(name, Record())
        kept |= {record.good, *(one.path for one in (record.version, record.ahead) if one)}
        if _is_needed_ahead(view, name, record):
            busy.add(name)
        if not _blocked(view, record, source) and not (record.version and record.version.source == source):
            busy.add(name)  # what is prepared may turn out to be a version that is on disk already
    return [
        Delete(path) for path in view.folders if path not in kept and adapter_of(path) not in busy and _free(view, path)
    ]


def adapter_of(path: str) -> str:
    """The adapter's name in the path of a version."""
    return path.rsplit("/", 2)[-2]


def _free(view: View, path: str) -> bool:
    since = view.now - view.unloaded.get(path, view.now)
    if view.in_flight is None:
        return since >= view.blind_grace
    running = [view.in_flight[model].oldest for model in (adapter_of(path), ANY_MODEL) if model in view.in_flight]
    # A second more than needed, as the two clocks were not read at the same time.
    return since >= view.grace and all(oldest + 1 < since for oldest in running)
