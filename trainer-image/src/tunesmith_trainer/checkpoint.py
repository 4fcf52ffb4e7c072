"""Checkpoints on disk: written under another name, moved into place when whole, checked before they are used."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

MANIFEST = "checkpoint.json"
PREFIX = "checkpoint-"
WRITING = ".writing-"


class Part(BaseModel):
    """One file of a checkpoint."""

    size: int
    sha256: str


class Manifest(BaseModel):
    """What makes a checkpoint whole; written last."""

    model_config = ConfigDict(extra="forbid")

    step: int
    attempt: int
    world_size: int
    strategy: str
    files: dict[str, Part]


def step_of(checkpoint: Path) -> int:
    """The step at which a checkpoint was written; -1 for other folders."""
    number = checkpoint.name.removeprefix(PREFIX)
    return int(number) if number.isdigit() else -1


def files(folder: Path) -> Iterator[Path]:
    """All files under `folder` but the manifest."""
    yield from (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST)


def sync(folder: Path) -> None:
    """Return when all under `folder` is on the disk."""
    for path in [folder, *folder.rglob("*")]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def part(path: Path) -> Part:
    """Size and checksum of a file."""
    with path.open("rb") as file:
        return Part(size=os.fstat(file.fileno()).st_size, sha256=hashlib.file_digest(file, "sha256").hexdigest())


def seal(folder: Path, step: int, attempt: int, world_size: int, strategy: str) -> None:
    """Write the manifest of a checkpoint whose files are all there."""
    paths = list(files(folder))
    with ThreadPoolExecutor() as pool:  # hashing runs without the interpreter's lock
        parts = dict(zip((path.relative_to(folder).as_posix() for path in paths), pool.map(part, paths), strict=True))
    manifest = Manifest(step=step, attempt=attempt, world_size=world_size, strategy=strategy, files=parts)
    draft = folder / f".{MANIFEST}"
    draft.write_text(manifest.model_dump_json(indent=1) + "\n")
    draft.rename(folder / MANIFEST)
    sync(folder)


def read_manifest(checkpoint: Path) -> Manifest:
    """A checkpoint's manifest. Raises ValueError with the reason why it is not whole."""
    try:
        manifest = Manifest.model_validate_json((checkpoint / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise ValueError(f"it has no {MANIFEST}, so it was being written when a process ended") from None
    except ValidationError:
        raise ValueError(f"its {MANIFEST} cannot be read") from None
    if manifest.step != step_of(checkpoint):
        raise ValueError(f"it is of step {manifest.step}")
    for name, wanted in manifest.files.items():
        path = checkpoint / name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if path.stat().st_size != wanted.size:
            raise ValueError(f"{name} has {path.stat().st_size} bytes, not {wanted.size}")
    return manifest


def verify(checkpoint: Path) -> Manifest:
    """A checkpoint's manifest, after a look at every byte. Raises ValueError with the reason why it is not whole."""
    manifest = read_manifest(checkpoint)
    with ThreadPoolExecutor() as pool:
        found = pool.map(part, [checkpoint / name for name in manifest.files])
        for (name, wanted), has in zip(manifest.files.items(), found, strict=True):
            if has != wanted:
                raise ValueError(f"{name} was altered: its sha256 is not the one it was written with")
    return manifest


class Checkpoints:
    """The checkpoints of a run, for one attempt of it. Only rank 0 asks and changes them."""

    def __init__(self, folder: Path, keep: int, attempt: int, world_size: int, strategy: str) -> None:
        self.folder, self.keep, self.attempt = folder, keep, attempt
        self.world_size, self.strategy = world_size, strategy
        self.staging = folder / f"{WRITING}{attempt}"
        """Where the one at hand is written."""
        self.converted = folder / f"{WRITING}{attempt}-converted"
        """Where the one that this attempt goes on from is made to fit its number of processes."""
        self.broken: set[Path] = set()
        self.best: int | None = None
        """Step of the one that is kept beside the newest ones, as its evaluation is the best."""

    def all(self) -> list[Path]:
        """Checkpoints that are in place, the newest first, whole or not."""
        return sorted((p for p in self.folder.glob(f"{PREFIX}*") if step_of(p) >= 0), key=step_of, reverse=True)

    def clear_drafts(self) -> None:
        """Delete what earlier attempts were writing when they ended."""
        for draft in self.folder.glob(f"{WRITING}*"):
            shutil.rmtree(draft, ignore_errors=True)

    def newest(self) -> Path | None:
        """The newest whole checkpoint that this attempt can go on from. Why others are passed over is printed."""
        for checkpoint in self.all():
            try:
                manifest = verify(checkpoint)
            except ValueError as reason:
                print(f"{checkpoint.name} is not used: {reason}")
                self.broken.add(checkpoint)
                continue
            if why := self.misfit(manifest):
                print(f"{checkpoint.name} is not used: {why}")
                continue
            return checkpoint
        return None

    def misfit(self, manifest: Manifest) -> str | None:
        """Why a whole checkpoint does not fit this attempt."""
        if manifest.strategy != self.strategy:
            return f"it was written by strategy {manifest.strategy}, and this attempt runs {self.strategy}"
        return None

    def needs_conversion(self, checkpoint: Path) -> bool:
        """Whether another number of processes wrote their parts of ZeRO's optimizer."""
        return self.strategy.startswith("ZeRO") and read_manifest(checkpoint).world_size != self.world_size

    def draft(self) -> None:
        """Make room for a checkpoint in the making."""
        shutil.rmtree(self.staging, ignore_errors=True)
        self.staging.mkdir(parents=True)

    def clear_own_draft(self) -> None:
        """Delete a draft that will not become whole, so that it takes no space."""
        shutil.rmtree(self.staging, ignore_errors=True)

    def write(self, step: int, name: str, content: str) -> None:
        """Add a file to a step's checkpoint in the draft."""
        (self.staging / f"{PREFIX}{step}" / name).write_text(content)

    def seal(self, step: int) -> None:
        """The files of a step's checkpoint are all in the draft: write its manifest."""
        seal(self.staging / f"{PREFIX}{step}", step, self.attempt, self.world_size, self.strategy)

    def publish(self, step: int) -> None:
        """Move the draft into place in one step, then delete those that are too many."""
        target = self.folder / f"{PREFIX}{step}"
        if target.exists():  # a broken one of this step, or one that did not fit
            shutil.rmtree(target)
        (self.staging / target.name).rename(target)
        self.staging.rmdir()
        shutil.rmtree(self.converted, ignore_errors=True)
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self.broken.discard(target)
        self.rotate()

    def rotate(self) -> None:
        """Keep the newest whole ones, as many as the plan says, and no broken ones. Those of another strategy stay."""
        kept = 0
        for checkpoint in self.all():
            try:
                if self.misfit(read_manifest(checkpoint)):
                    continue
                whole = checkpoint not in self.broken
            except ValueError:
                whole = False
            kept += whole
            if not whole or (kept > self.keep and step_of(checkpoint) != self.best):
                shutil.rmtree(checkpoint)
