"""Artefact folders: named by the digest of their content, written once, never changed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

MANIFEST = "manifest.json"


def files(folder: Path) -> Iterator[Path]:
    """The files that make up the content of an artefact, sorted by relative path. The manifest is not content."""
    yield from sorted(p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).as_posix() != MANIFEST)


def digest(folder: Path) -> str:
    """Hex sha256 of an artefact's content: of one line per file, `<sha256 of the file>  <relative path>`."""
    total = hashlib.sha256()
    for path in files(folder):
        with path.open("rb") as file:
            one = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{one}  {path.relative_to(folder).as_posix()}\n".encode())
    return total.hexdigest()


def publish(folder: Path, parent: Path, name: str) -> Path:
    """Move a finished folder to `parent/name` in one step. Where that is there already, it has the same content
    (names are digests), and ours is dropped. `folder` must lie on the same file system.
    """
    target = parent / name
    parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(folder, target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(folder)
    return target
