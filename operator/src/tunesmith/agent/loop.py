"""The loop that makes the engine serve what it should. The only place that acts on the engine and the store."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tunesmith.agent.desired import Desired
from tunesmith.agent.engine import Engine, EngineError
from tunesmith.agent.footprint import measure
from tunesmith.agent.lookout import Lookout
from tunesmith.agent.metrics import Metrics
from tunesmith.agent.prepare import PrepareError, Preparer
from tunesmith.agent.reconcile import Delete, Failure, Load, Prepare, Record, Step, Swap, Unload, Version, View, decide
from tunesmith.agent.report import is_ready, refusals, report
from tunesmith.agent.settings import Settings
from tunesmith.agent.smoke import SmokeError, alias, smoke
from tunesmith.agent.store import Source, Store
from tunesmith.fetching.shared import mark
from tunesmith.serving.contract import AgentStatus, Footprint, State
from tunesmith.training.location import CLAIMS

log = logging.getLogger(__name__)

MAX_DELAY = 60.0
PROBE_DOWN, PROBE_UP, POLL = 0.5, 1.0, 1.0
MAX_SILENT = 3
MARK_SECONDS = 3600.0


def delay(attempts: int) -> float:
    """Seconds before the next attempt: 1, 2, 4 ... 60, spread so that pods do not come all at once."""
    return float(min(MAX_DELAY, 2.0 ** min(attempts - 1, 10)) * random.uniform(0.8, 1.0))


class Agent:
    """One pod's agent."""

    def __init__(self, settings: Settings, engine: Engine, metrics: Metrics) -> None:
        self.settings = settings
        self.engine = engine
        self.metrics = metrics
        self.store = Store(settings.adapters_folder)
        self.preparer = Preparer(self.store, settings.max_lora_rank)
        self.lookout = Lookout(settings.resync_seconds / 2)
        self.wake = asyncio.Event()
        self.desired = Desired(settings.state_file, settings.adapters_folder / ".state.json", self.wake.set)
        self._all: State | None = None
        self._own: State | None = None
        """What `_all` means for this pod."""
        self.records: dict[str, Record] = {}
        self.wanted: Mapping[str, Source] = {}
        self.footprint: Footprint | None = None
        self.up = False
        self.loaded: dict[str, str] | None = None
        self.unloaded: dict[str, float] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.stopping: set[asyncio.Task[None]] = set()
        self.settled = False
        """Whether, since the engine came up, everything on disk has been offered to it."""

    async def run(self) -> None:
        """Run until cancelled."""
        watchers = [
            asyncio.create_task(one)
            for one in (self._watch_engine(), self._watch_file(), self._measure_base(), self._mark_use())
        ]
        try:
            while True:
                self.wake.clear()
                try:
                    await self._pass()
                except Exception:  # whatever it was, the next pass starts from what is
                    log.exception("pass failed")
                # Not wait_for: in Python 3.11 it loses a cancellation that comes together with the event.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._rest()):
                        await self.wake.wait()
        finally:
            for task in [*watchers, *self.tasks.values()]:
                task.cancel()
            await asyncio.gather(*watchers, *self.tasks.values(), *self.stopping, return_exceptions=True)

    async def _watch_engine(self) -> None:
        silent = 0
        while True:
            answer = await self.engine.healthy()
            # A pod that leaves its Service because it is busy makes the others busier.
            silent = silent + 1 if answer is None else 0
            up = self.up and silent < MAX_SILENT if answer is None else answer
            if up != self.up:
                log.info("the engine is %s", "up" if up else "down")
                self.up = up
                if not up:
                    self.loaded, self.settled = None, False
                self.metrics.engine_up.set(up)
                self.wake.set()
            await asyncio.sleep(PROBE_UP if up else PROBE_DOWN)

    async def _watch_file(self) -> None:
        while True:
            await asyncio.sleep(POLL)
            self.desired.poll()

    async def _measure_base(self) -> None:
        """Find out what the base takes of memory, when its files are there."""
        settings = self.settings
        while self.footprint is None:
            if state := self.desired.state:
                sizes = (settings.engine_dtype, settings.max_lora_rank or state.max_lora_rank, settings.max_loras)
                with contextlib.suppress(OSError, ValueError):  # also BaseError
                    base = await asyncio.to_thread(self.preparer.base, state.model_path)
                    self.footprint = await asyncio.to_thread(measure, Path(state.model_path), base, *sizes)
            await asyncio.sleep(self.settings.resync_seconds)

    async def _mark_use(self) -> None:
        """Say of what lies on shared claims that this pod uses it."""
        folder = self.settings.adapters_folder
        shared = [Path(self.settings.in_use)] if self.settings.in_use else []
        while True:
            # A group's folder is <claim>/.tunesmith/adapters/<uid>/<group>.
            for path in [*shared, *([folder.parent] if folder.is_relative_to(CLAIMS) else [])]:
                with contextlib.suppress(OSError):  # a volume that is full or away for now
                    await asyncio.to_thread(mark, path)
            await asyncio.sleep(MARK_SECONDS)

    def _rest(self) -> float:
        """Seconds to the next pass: the resync, or a retry that is due before."""
        failures = [f for r in self.records.values() for f in (r.failure, r.ahead_failure) if f and not f.permanent]
        due = [failure.retry_at for failure in failures]
        now = time.monotonic()
        return max(0.1, min([self.settings.resync_seconds, *(at - now for at in due if at > now)]))

    async def _pass(self) -> None:
        state = self.state
        if state is None:
            return
        known = await self._ask()
        view = await self._view(state, known)
        self.wanted = view.wanted
        self._drop_unwanted(view)
        steps = decide(view)
        for step in steps:
            await self._act(step, state)
        if known and not self.settled:
            self.settled = not any(isinstance(s, Load | Swap) for s in decide(await self._view(state, known)))
        self.metrics.show(self.status())

    @property
    def state(self) -> State | None:
        """What this pod should serve."""
        if self.desired.state is not self._all:
            self._all = self.desired.state
            self._own = self._all.of(self.settings.pod_uid) if self._all else None
        return self._own

    async def _ask(self) -> bool:
        """Learn what the engine has. Says whether that was possible."""
        if not self.up:
            return False
        try:
            self.loaded = await self.engine.adapters()
        except EngineError as error:
            log.warning("%s", error)
            return False
        return True

    async def _view(self, state: State, known: bool) -> View:
        now = time.monotonic()
        refused = refusals(state)
        adapters = [a for a in state.adapters if a.name not in refused]
        found = await self.lookout.sources(v for a in adapters for v in (a.version, a.ahead) if v)
        sources = {a.name: found[a.version] for a in adapters}
        folders = dict.fromkeys(str(p) for p in await asyncio.to_thread(self.store.folders))
        for path in (self.loaded or {}).values():
            self.unloaded[path] = now
        for name, path in (self.loaded or {}).items():
            if name in sources and self.store.owns(path):
                self.records.setdefault(name, Record()).good = path
        self.unloaded = {path: self.unloaded.get(path, now) for path in folders}
        for name, record in self.records.items():
            if name in sources:
                record.promote(sources[name])
            if record.ahead and record.ahead.path not in folders:
                record.ahead = None
            if record.version and record.version.path not in folders:
                record.version = None  # somebody deleted it: make it again before the engine misses it
        in_flight = await self.engine.in_flight() if known and folders else None
        return View(
            now=now,
            wanted=sources,
            records=self.records,
            engine=dict(self.loaded or {}) if known else None,
            folders=folders,
            unloaded=self.unloaded,
            in_flight=in_flight,
            store=str(self.store.root),
            grace=self.settings.grace_seconds,
            blind_grace=self.settings.blind_grace_seconds,
            ahead={a.name: found[a.ahead] for a in adapters if a.ahead},
        )

    def _drop_unwanted(self, view: View) -> None:
        for name in list(self.tasks):
            if self.records[name].preparing not in (view.wanted.get(name), view.ahead.get(name)):
                self._stop(name)
                self.records[name].preparing = None
        for name in self.records.keys() - view.wanted.keys():
            del self.records[name]
        self.store.sweep(view.wanted)

    def _stop(self, name: str) -> None:
        """Stop preparing; the child process that fetches is ended, too."""
        task = self.tasks.pop(name)
        self.stopping.add(task)
        task.add_done_callback(self.stopping.discard)
        task.cancel()

    async def _act(self, step: Step, state: State) -> None:
        """Take one step. What fails concerns this adapter only."""
        match step:
            case Prepare(name, source):
                record = self.records.setdefault(name, Record())
                if name in self.tasks:
                    self._stop(name)
                record.preparing = source
                wanted = self.wanted.get(name)
                if record.failure and record.failure.source != wanted:
                    record.failure = None
                self.tasks[name] = asyncio.create_task(self._prepare(name, source, state))
            case Load(name, path) | Swap(name, _, path) if not await self._passes(name, path, state):
                pass
            case Load(name, path):
                again = self.records[name].good == path
                if await self._load(name, path) and again:
                    self.metrics.drift_repaired.inc()
            case Swap(name, old, path):
                await self._swap(name, old, path)
            case Unload(name, path):
                with self._failing_softly(name):
                    await self.engine.unload(name)
                    self._gone(name, path)
            case Delete(path):
                log.info("delete %s", path)
                with self._failing_softly(path):
                    await asyncio.to_thread(self.store.delete, self.store.root / path)

    @contextlib.contextmanager
    def _failing_softly(self, what: str) -> Iterator[None]:
        try:
            yield
        except (EngineError, OSError) as error:
            log.warning("%s: %s: tried again", what, error)

    async def _prepare(self, name: str, source: Source, state: State) -> None:
        record = self.records[name]
        start = time.monotonic()
        try:
            folder = await self.preparer.prepare(name, source, state)
        except PrepareError as error:
            self._fail(name, source, str(error), error.reason, permanent=error.permanent, rank=error.rank)
        except Exception as error:
            log.exception("preparing %s failed", name)
            self._fail(name, source, f"{source.uri}: {error!r}", "Internal", permanent=False)
        else:
            if source == self.wanted.get(name):
                record.version = Version(source, str(folder))
            else:
                record.ahead, record.ahead_failure = Version(source, str(folder)), None
            self.metrics.prepare_seconds.observe(time.monotonic() - start)
            log.info("%s: %s is at %s", name, source.uri, folder)
        self.tasks.pop(name, None)
        record.preparing = None
        self.wake.set()

    def _newest(self, name: str, path: str) -> Source | None:
        """The wanted source that `path` was made from. None: an older version is put back while the wanted one is bad,
        and neither its success nor its failure says anything of that.
        """
        version = self.records[name].version
        return version.source if version and version.path == path and version.source == self.wanted.get(name) else None

    async def _passes(self, name: str, path: str, state: State) -> bool:
        """Whether a version answers its smoke request. It is asked under another name, while the old one serves."""
        record = self.records[name]
        adapter = next((one for one in state.adapters if one.name == name), None)
        if adapter is None or adapter.smoke is None or path in (record.smoked, record.good):
            return True
        source = self._newest(name, path)
        try:
            await smoke(self.engine, name, path, state.model_name, adapter.smoke)
        except (EngineError, SmokeError) as error:
            reason = "SmokeFailed" if isinstance(error, SmokeError) else "LoadFailed"
            if source:
                self._fail(name, source, str(error), reason, permanent=error.permanent)
            return False
        finally:
            self.unloaded[path] = time.monotonic()
            (self.loaded or {}).pop(alias(name), None)
        record.smoked = path
        return True

    async def _load(self, name: str, path: str) -> bool:
        record = self.records[name]
        newest = self._newest(name, path)
        start = time.monotonic()
        try:
            await self.engine.load(name, path)
        except EngineError as error:
            if newest:
                self._fail(name, newest, str(error), "LoadFailed", permanent=error.permanent)
            else:
                log.warning("%s: %s: %s", name, path, error)
            return False
        self.metrics.load_seconds.observe(time.monotonic() - start)
        log.info("loaded %s from %s in %.3f s", name, path, time.monotonic() - start)
        if newest:
            record.failure = None
        record.good = path
        if self.loaded is not None:
            self.loaded[name] = path
        return True

    async def _swap(self, name: str, old: str, path: str) -> None:
        """Unload and load: what has begun ends with the old version, what comes now waits for the new one. Loading
        in place would change the weights in the middle of an answer.
        """
        with self._failing_softly(name):
            await self.engine.hold(name)
        try:
            with self._failing_softly(name):
                await self.engine.unload(name)
                self._gone(name, old)
                if not await self._load(name, path) and self.store.owns(old):
                    await self.engine.load(name, old)
                    if self.loaded is not None:
                        self.loaded[name] = old
        finally:
            with self._failing_softly(name):
                await self.engine.release(name)

    def _gone(self, name: str, path: str) -> None:
        log.info("unloaded %s from %s", name, path)
        self.unloaded[path] = time.monotonic()
        if self.loaded is not None:
            self.loaded.pop(name, None)

    def _fail(
        self, name: str, source: Source, message: str, reason: str, *, permanent: bool, rank: int | None = None
    ) -> None:
        record = self.records[name]
        is_ahead = source != self.wanted.get(name)
        last = record.ahead_failure if is_ahead else record.failure
        attempts = 1 + (last.attempts if last and last.source == source else 0)
        failure = Failure(source, message, permanent, attempts, time.monotonic() + delay(attempts), reason, rank)
        if is_ahead:
            record.ahead_failure = failure
        else:
            record.failure = failure
        self.metrics.failures.inc()
        log.warning("%s (attempt %d): %s", name, attempts, message)

    @property
    def ready(self) -> bool:
        """Whether the pod serves what it must."""
        return is_ready(self.state, self.loaded, up=self.up, settled=self.settled)

    def status(self) -> AgentStatus:
        """What there is to report."""
        found = report(self.state, self.records, self.loaded, up=self.up, settled=self.settled, now=time.monotonic())
        return found.model_copy(update={"pod_uid": self.settings.pod_uid, "footprint": self.footprint})
