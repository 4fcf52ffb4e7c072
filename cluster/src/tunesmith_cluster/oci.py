"""OCI image archives from folders, by the standard library: the same content gives the same bytes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import stat
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tunesmith_cluster.errors import ClusterError

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_SKIPPED = {"__pycache__", ".git", ".venv", ".mypy_cache", ".pytest_cache", ".ruff_cache"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, folder or link of an image; everything belongs to root."""

    path: str
    """Without a leading slash."""
    mode: int
    content: bytes | Path | None = None
    """None for a folder."""
    link: str | None = None
    """A symbolic link's target."""


@dataclass(frozen=True, slots=True)
class Config:
    """What a container of the image runs unless the pod says otherwise."""

    entrypoint: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    working_directory: str = ""
    user: str = ""


@dataclass(frozen=True, slots=True)
class Image:
    """An image whose layer lies in a file, ready to be archived."""

    name: str
    layer: Path
    layer_digest: str
    config: bytes
    manifest: bytes

    @property
    def digest(self) -> str:
        """What identifies the image: the digest of its manifest."""
        return _digest(self.manifest)

    def write_archive(self, path: Path) -> None:
        """Write the archive in OCI layout, as `ctr images import` reads it."""
        index = {
            "schemaVersion": 2,
            "manifests": [
                {
                    **_descriptor("manifest.v1+json", self.manifest),
                    "annotations": {"io.containerd.image.name": self.name},
                }
            ],
        }
        blobs = "blobs/sha256"
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
            _add(archive, Entry("oci-layout", 0o644, b'{"imageLayoutVersion":"1.0.0"}'))
            _add(archive, Entry("index.json", 0o644, _json(index)))
            for blob in (self.config, self.manifest):
                _add(archive, Entry(f"{blobs}/{_hexdigest(blob)}", 0o644, blob))
            _add(archive, Entry(f"{blobs}/{self.layer_digest.partition(':')[2]}", 0o644, self.layer))


def make_image(name: str, entries: Iterable[Entry], config: Config, layer: Path) -> Image:
    """Write the layer to the file `layer` and describe the image."""
    with tarfile.open(layer, "w", format=tarfile.PAX_FORMAT) as archive:
        for entry in sorted(_with_parents(entries), key=lambda entry: entry.path.split("/")):
            _add(archive, entry)
    with open(layer, "rb") as file:
        layer_digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    settings: dict[str, Any] = {
        "Env": [f"{key}={value}" for key, value in sorted({**_PATH, **config.environment}.items())]
    }
    if config.entrypoint:
        settings["Entrypoint"] = list(config.entrypoint)
    if config.working_directory:
        settings["WorkingDir"] = config.working_directory
    if config.user:
        settings["User"] = config.user
    machine = platform.machine()
    described = _json(
        {
            "architecture": _ARCHITECTURES.get(machine, machine),
            "os": "linux",
            "config": settings,
            "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": _descriptor("config.v1+json", described),
            "layers": [
                {
                    "mediaType": "application/vnd.oci.image.layer.v1.tar",
                    "digest": layer_digest,
                    "size": layer.stat().st_size,
                }
            ],
        }
    )
    return Image(name, layer, layer_digest, described, manifest)


def copied(source: Path, destination: PurePosixPath) -> Iterator[Entry]:
    """The entries that put a file, or a folder's content, at `destination`."""
    if not source.exists():
        raise ClusterError(f"cannot copy {source} into the image: there is no such file or folder")
    target = str(destination).strip("/")
    if source.is_file():
        yield _entry(source, target)
        return
    for folder, names, files in os.walk(source):
        links = [name for name in names if os.path.islink(os.path.join(folder, name))]
        names[:] = sorted(name for name in names if name not in _SKIPPED and name not in links)
        relative = os.path.relpath(folder, source)
        base = target if relative == "." else f"{target}/{relative}"
        yield Entry(base, 0o755)
        for name in [*links, *files]:
            if not name.endswith(".pyc"):
                yield _entry(Path(folder, name), f"{base}/{name}")


def full_name(name: str) -> str:
    """The name as the kubelet writes it: with a registry and a tag."""
    first, slash, _ = name.partition("/")
    if not slash:
        name = f"docker.io/library/{name}"
    elif "." not in first and ":" not in first and first != "localhost":
        name = f"docker.io/{name}"
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


_PATH = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def _entry(source: Path, path: str) -> Entry:
    if source.is_symlink():
        return Entry(path, 0o777, link=os.readlink(source))
    # Not the checkout's own modes: a strict umask there must not hide the files from a container's user.
    executable = source.stat().st_mode & stat.S_IXUSR
    return Entry(path, 0o755 if executable else 0o644, source)


def _with_parents(entries: Iterable[Entry]) -> Iterable[Entry]:
    """One entry per path (the last one given), and every folder above."""
    found: dict[str, Entry] = {}
    for entry in entries:
        for parent in PurePosixPath(entry.path).parents:
            if str(parent) != ".":
                found.setdefault(str(parent), Entry(str(parent), 0o755))
        found[entry.path] = entry
    return found.values()


def _add(archive: tarfile.TarFile, entry: Entry) -> None:
    info = tarfile.TarInfo(entry.path)  # a fresh one: time 0, owner root, no names of users
    info.mode = entry.mode
    if entry.link is not None:
        info.type, info.linkname = tarfile.SYMTYPE, entry.link
        archive.addfile(info)
    elif entry.content is None:
        info.type = tarfile.DIRTYPE
        archive.addfile(info)
    elif isinstance(entry.content, bytes):
        info.size = len(entry.content)
        archive.addfile(info, io.BytesIO(entry.content))
    else:
        with open(entry.content, "rb") as file:
            info.size = os.fstat(file.fileno()).st_size
            archive.addfile(info, file)


def _descriptor(kind: str, blob: bytes) -> dict[str, Any]:
    prefix = "application/vnd.oci.image."
    return {"mediaType": prefix + kind, "digest": _digest(blob), "size": len(blob)}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _hexdigest(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def _digest(blob: bytes) -> str:
    return f"sha256:{_hexdigest(blob)}"
