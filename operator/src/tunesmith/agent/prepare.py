"""From a source to a checked version in the store. Slow things happen in threads and child processes."""

from __future__ import annotations

import asyncio
import shutil
import sys
import threading
from pathlib import Path

from tunesmith.agent import base as bases
from tunesmith.agent import checks, store
from tunesmith.fetching import NOT_FOUND, PERMANENT
from tunesmith.serving.contract import State


class PrepareError(Exception):
    """The source did not become a version."""

    def __init__(self, message: str, reason: str, *, permanent: bool, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank
        """The rank that the engine would need to serve."""
        self.reason = reason
        """One CamelCase word."""
        self.permanent = permanent
        """Whether the same source would fail again."""


class Preparer:
    """Prepares adapters, a few at a time."""

    def __init__(self, adapters: store.Store, max_rank: int = 0, parallel: int = 4) -> None:
        self.store = adapters
        self.max_rank = max_rank
        self.slots = asyncio.Semaphore(parallel)
        self._bases: dict[str, bases.Base] = {}

    async def prepare(self, name: str, source: store.Source, state: State) -> Path:
        """The folder of the version that `source` holds. Raises PrepareError."""
        async with self.slots:
            cancelled = threading.Event()
            try:
                return await self._prepare(name, source, state, cancelled)
            except checks.CheckError as error:
                raise PrepareError(f"{source.uri}: {error}", error.reason, permanent=True, rank=error.rank) from None
            except store.StoreError as error:
                raise PrepareError(f"{source.uri}: {error}", "BadSource", permanent=True) from None
            except bases.BaseError as error:
                raise PrepareError(str(error), "BaseUnreadable", permanent=False) from None
            except OSError as error:
                raise PrepareError(f"{source.uri}: {error}: tried again", "StorageFailed", permanent=False) from None
            finally:
                cancelled.set()  # a thread cannot be stopped from outside

    async def _prepare(self, name: str, source: store.Source, state: State, cancelled: threading.Event) -> Path:
        recalled = await asyncio.to_thread(self.store.recall, name, source)
        if recalled:
            folder = recalled
        elif source.fetch:
            folder = await self._fetch(name, source)
        else:
            folder = await asyncio.to_thread(self.store.copy, name, source.uri, Path(source.path), cancelled)
        try:
            await asyncio.to_thread(self._check, folder, state)
        except checks.CheckError:
            if not recalled:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            raise
        if recalled:
            return recalled
        return await asyncio.to_thread(self.store.publish, folder, name, source)

    def base(self, path: str) -> bases.Base:
        """The base model, read once. Raises BaseError."""
        if path not in self._bases:
            self._bases[path] = bases.read(Path(path))
        return self._bases[path]

    def _check(self, folder: Path, state: State) -> None:
        base = self.base(state.model_path)
        checks.check(folder, base, self.max_rank or state.max_lora_rank)

    async def _fetch(self, name: str, source: store.Source) -> Path:
        """Fetch with a child process, which can be stopped at any time and gives its memory back."""
        target = self.store.temporary(name, source.uri)
        command = [sys.executable, "-m", "tunesmith.fetching", "--uri", source.uri, "--to", str(target)]
        if source.secret:
            command += ["--secret", source.secret]
        child = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        try:
            _, errors = await child.communicate()
        finally:
            if child.returncode is None:
                child.kill()
                await child.communicate()  # until its pipe is closed, too
        if child.returncode:
            lines = errors.decode(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else f"{source.uri}: fetching ended with {child.returncode}"
            word = {PERMANENT: "Refused", NOT_FOUND: "NotFound"}.get(child.returncode, "FetchFailed")
            raise PrepareError(reason, word, permanent=child.returncode == PERMANENT)
        return target
