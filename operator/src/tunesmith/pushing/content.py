"""What is pushed: the files of a finished artefact."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tunesmith import artifacts
from tunesmith.fetching import NOT_FOUND, FetchError, Kind

MAX_MANIFEST = 4 * 1024 * 1024


@dataclass(frozen=True)
class File:
    """One file."""

    path: Path

    @cached_property
    def size(self) -> int:
        """In bytes."""
        return self.path.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """Hex digest."""
        return artifacts.file_digest(self.path)


@dataclass(frozen=True)
class Content:
    """A whole artefact, whose files are what its manifest says."""

    digest: str
    """`sha256:` of the content."""
    files: dict[str, File]
    """By relative path; the manifest is the last."""
    manifest: dict[str, Any]

    @classmethod
    def of(cls, folder: Path) -> Content:
        """The artefact in a folder. Raises FetchError."""
        if not (folder / artifacts.MANIFEST).is_file():
            raise FetchError(f"{folder} has no {artifacts.MANIFEST}, so it is no artefact of a job", NOT_FOUND)
        manifest = json.loads((folder / artifacts.MANIFEST).read_text())
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        paths.sort(key=lambda path: path == folder / artifacts.MANIFEST)
        files = {path.relative_to(folder).as_posix(): File(path) for path in paths}
        whole = hashlib.sha256()
        for name, file in files.items():
            if name not in artifacts.NOT_CONTENT:
                whole.update(f"{file.sha256}  {name}\n".encode())
        found = f"sha256:{whole.hexdigest()}"
        if manifest.get("digest") != found:
            raise FetchError(f"{folder} holds {found}, but its manifest says {manifest.get('digest')}: it is damaged")
        return cls(found, files, manifest)

    def is_that_of(self, manifest: bytes) -> bool:
        """Whether a manifest that lies where this is to go is of the same content."""
        try:
            return bool(json.loads(manifest).get("digest") == self.digest)
        except (ValueError, AttributeError):
            return False

    @property
    def repository_kind(self) -> Kind:
        """What a hub keeps it as: answers are data."""
        return "dataset" if self.manifest.get("kind") == "results" else "model"

    @property
    def license(self) -> str | None:
        """As the job's spec gave it."""
        given = self.manifest.get("plan", {}).get("output", {}).get("license")
        return None if given is None else str(given)

    @property
    def message(self) -> str:
        """What a commit of it says."""
        job = self.manifest.get("job", {})
        return f"{job.get('kind', 'Job')} {job.get('namespace')}/{job.get('name')}: {self.digest}"
