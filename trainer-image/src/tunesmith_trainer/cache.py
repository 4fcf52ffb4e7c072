"""Prepared tables, kept under the hash of all that they depend on, for ranks, attempts and jobs. An entry appears by a
rename, whole, and is never changed; whoever comes first makes it while the others wait.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.training.plan import TrainPlan

from tunesmith_trainer.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

VERSION = 3
"""Of what is written here and by forms.py, masks.py and methods: raised where the same input gives other rows."""
TABLE, NOTES = "table.arrow", "notes.json"
Notes = dict[str, Any]
Batches = Iterator[Any]
"""pyarrow tables or record batches of one schema."""


def key_of(*parts: Any) -> str:
    """The hash of JSON values."""
    text = json.dumps([VERSION, *parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def cache_of(plan: TrainPlan) -> Cache:
    """The cache that a plan says."""
    return Cache(Path("/tmp" if plan.training.data_cache == "Local" else plan.output.path) / "cache")


@dataclass(frozen=True)
class Cache:
    """A folder of entries; without one, tables are held in memory."""

    folder: Path | None = None

    def table(self, key: str, make: Callable[[Notes], Batches]) -> tuple[Dataset, Notes]:
        """The table under `key`, mapped into memory, with its notes. Where it is not there yet, `make` gives its
        batches and fills the notes. Raises what `make` raises.
        """
        from datasets import Dataset
        from datasets.table import InMemoryTable
        from pyarrow import Table

        if self.folder is None:
            notes: Notes = {}
            batches = [one if isinstance(one, Table) else Table.from_batches([one]) for one in make(notes)]
            if not batches:
                raise DataError("nothing is left of the rows")
            from pyarrow import concat_tables

            return Dataset(concat_tables(batches)), notes
        entry = self.folder / key
        if not entry.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            with self.turn(key) as failed:
                if not entry.is_dir():
                    if failed:
                        raise DataError(failed)
                    self.write(entry, make)
        mapped = Dataset.from_file(str(entry / TABLE)).data.table
        # Without the file's name: `datasets` would write what is made of it (packed rows) beside it.
        return Dataset(InMemoryTable(mapped), fingerprint=key), json.loads((entry / NOTES).read_text())

    def write(self, entry: Path, make: Callable[[Notes], Batches]) -> None:
        """Make an entry."""
        from pyarrow import OSFile, ipc

        for old in entry.parent.glob(f".tmp-{entry.name}-*"):  # of a process that was killed
            shutil.rmtree(old, ignore_errors=True)
        draft = entry.with_name(f".tmp-{entry.name}-{os.getpid()}")
        draft.mkdir()
        try:
            notes: Notes = {}
            writer: Any = None
            with OSFile(str(draft / TABLE), "wb") as file:
                for batch in make(notes):
                    writer = writer or ipc.new_stream(file, batch.schema)
                    writer.write(batch)
                if writer is None:
                    raise DataError("nothing is left of the rows")
                writer.close()
            (draft / NOTES).write_text(json.dumps(notes))
            for path in draft.iterdir():
                path.chmod(0o644)
                with path.open("rb") as file_:
                    os.fsync(file_.fileno())
            draft.chmod(0o755)
            with suppress(OSError):  # a node without our lock was first, with the same content
                draft.rename(entry)
        except DataError as error:
            (entry.parent / f"{entry.name}.failed").write_text(str(error))
            raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    @contextmanager
    def turn(self, key: str) -> Iterator[str | None]:
        """Hold the right to make an entry. Gives the error with which another process failed to, while this one waited:
        it would fail alike.
        """
        from filelock import FileLock

        assert self.folder
        failed = self.folder / f"{key}.failed"
        before = failed.stat().st_mtime_ns if failed.exists() else None
        lock = FileLock(self.folder / f"{key}.lock", mode=0o666)
        with suppress(OSError, NotImplementedError):  # a file system without locks: several make the same
            lock.acquire(poll_interval=0.2)
        try:
            told = failed.exists() and failed.stat().st_mtime_ns != before
            yield failed.read_text() if told else None
        finally:
            lock.release()
