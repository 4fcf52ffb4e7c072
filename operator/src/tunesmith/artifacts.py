"""Artefact folders: named by the digest of their content, written once, never changed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

MANIFEST = "manifest.json"
CARD = "README.md"
# What says where an artefact is from is not its content: the same weights have the same name.
NOT_CONTENT = (MANIFEST, CARD)


def files(folder: Path) -> Iterator[Path]:
    """The files that make up the content of an artefact, sorted by relative path. Manifest and card are not content."""
    every = sorted(path for path in folder.rglob("*") if path.is_file())
    yield from (path for path in every if path.relative_to(folder).as_posix() not in NOT_CONTENT)


def digest(folder: Path) -> str:
    """Hex sha256 of an artefact's content: of one line per file, `<sha256 of the file>  <relative path>`."""
    total = hashlib.sha256()
    for path in files(folder):
        total.update(f"{file_digest(path)}  {path.relative_to(folder).as_posix()}\n".encode())
    return total.hexdigest()


def file_digest(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
