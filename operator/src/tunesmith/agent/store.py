"""The pod's adapters on disk: `<adapters>/<name>/<sha256>/`, written once, removed when nobody can read them.

A folder appears by rename, so what has a name is whole. `<adapters>/<name>/<sha256>.json` remembers where a
version came from, so that a restarted agent fetches nothing again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from tunesmith import artifacts
from tunesmith.serving.contract import Version

# As ServedName of the API, which the file that we read need not have passed through, and the version that is tried.
NAME = re.compile(r"[a-zA-Z0-9]([-._a-zA-Z0-9]{0,61}[a-zA-Z0-9])?(@canary)?")
DIGEST = re.compile(r"[0-9a-f]{64}")
CHUNK = 1024 * 1024
MAX_FILES = 1000


class StoreError(ValueError):
    """The source is not a folder that may be copied. The message says what was found and what to do."""


class Cancelled(Exception):
    """Nobody wants the copy any more."""


@dataclass(frozen=True)
class Source:
    """One version of one adapter: what to prepare, and what its files (or its Secret's) look like now, so that
    a mended source is tried again.
    """

    uri: str
    path: str
    fetch: bool
    secret: str | None
    fingerprint: str

    @classmethod
    def of(cls, version: Version) -> Source:
        """The source as it is now."""
        watched = version.secret if version.fetch else version.path
        return cls(version.uri, version.path, version.fetch, version.secret, fingerprint(watched))


def fingerprint(path: str | None) -> str:
    """Names, sizes and times of a folder's files. Empty where there is no folder."""
    if path is None:
        return ""
    lines = []
    for root, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names)[:MAX_FILES]:
            try:
                info = os.stat(os.path.join(root, name))
            except OSError:
                continue
            lines.append(f"{os.path.relpath(root, path)}/{name}:{info.st_size}:{info.st_mtime_ns}")
        if len(lines) > MAX_FILES:
            break
    return "|".join(lines)


class Store:
    """The adapters' folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.incoming = root / ".incoming"

    def temporary(self, name: str, uri: str) -> Path:
        """Where a new version of an adapter is put together. What an earlier, killed agent left of the same
        address stays: a download goes on from there.
        """
        self.incoming.mkdir(parents=True, exist_ok=True)
        return self.incoming / f"{name}@{hashlib.sha256(uri.encode()).hexdigest()[:16]}"

    def sweep(self, names: Collection[str]) -> None:
        """Drop what was begun for adapters that nobody wants any more."""
        for path in self.incoming.glob("*@*"):
            if path.name.rpartition("@")[0] not in names:
                shutil.rmtree(path, ignore_errors=True)

    def copy(self, name: str, uri: str, source: Path, cancelled: threading.Event) -> Path:
        """Copy a mounted adapter into a temporary folder. Raises StoreError, Cancelled and OSError."""
        if not source.is_dir():
            raise StoreError(f"{source} is not there: the address must be the folder of a PEFT adapter")
        if os.path.realpath(source) != str(source):
            raise StoreError(f"{source} leads elsewhere (a symlink or ..): name the folder itself")
        target = self.temporary(name, uri)
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for path in regular_files(source):
            copied = target / path.relative_to(source)
            copied.parent.mkdir(parents=True, exist_ok=True)
            # A symlink put there since the look above is not followed.
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as old, copied.open("wb") as new:
                while chunk := old.read(CHUNK):
                    if cancelled.is_set():
                        raise Cancelled
                    new.write(chunk)
        named = source.name if DIGEST.fullmatch(source.name) else None
        if named and (digest := artifacts.digest(target)) != named:
            raise StoreError(f"{source}: the content has the digest {digest}: the artefact is damaged; make it again")
        return target

    def publish(self, temporary: Path, name: str, source: Source) -> Path:
        """Give a checked folder its digest as its name."""
        list(regular_files(temporary))
        digest = artifacts.digest(temporary)
        there = self.root / name / digest
        if there.is_dir() and artifacts.digest(there) != digest:  # the node died before all was on disk
            shutil.rmtree(there)
        folder = artifacts.publish(temporary, self.root / name, digest)
        memory = self.root / name / f"{digest}.json"
        draft = memory.with_suffix(".tmp")
        draft.write_text(json.dumps(vars(source)))
        draft.rename(memory)
        return folder

    def recall(self, name: str, source: Source) -> Path | None:
        """The folder of a version that an earlier agent made from the same source, if it is whole."""
        for memory in sorted((self.root / name).glob("*.json")):
            try:
                same = json.loads(memory.read_bytes()) == vars(source)
            except (OSError, ValueError):
                continue
            folder = memory.with_suffix("")
            if same and DIGEST.fullmatch(folder.name) and folder.is_dir() and artifacts.digest(folder) == folder.name:
                return folder
        return None

    def folders(self) -> list[Path]:
        """All versions of all adapters on disk."""
        return sorted(p for p in self.root.glob("*/*") if DIGEST.fullmatch(p.name) and p.is_dir())

    def owns(self, path: str) -> bool:
        """Whether a path that the engine names lies in this store."""
        return Path(path).is_relative_to(self.root)

    def delete(self, folder: Path) -> None:
        """Remove a version; the adapter's own folder too if it was the last."""
        folder.with_name(f"{folder.name}.json").unlink(missing_ok=True)
        shutil.rmtree(folder)
        with contextlib.suppress(OSError):  # another version is there
            folder.parent.rmdir()


def regular_files(folder: Path) -> Iterator[Path]:
    """The files below a folder. Symlinks and anything else are refused: they could lead out of it."""
    number = 0
    for root, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(root, name)
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode) or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise StoreError(f"{path} is a symlink or no regular file: copy real files there")
            if stat.S_ISREG(mode):
                number += 1
                if number > MAX_FILES:
                    raise StoreError(f"{folder} has more than {MAX_FILES} files: this is no adapter's folder")
                yield path
