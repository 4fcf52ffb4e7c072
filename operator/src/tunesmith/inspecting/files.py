"""The files of a model, wherever they are: their names, and parts of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tunesmith.fetching import Credentials
from tunesmith.training.location import locate


@dataclass(frozen=True)
class Files:
    """A model's folder."""

    where: str
    """For people."""
    names: list[str]
    read: Callable[[str, int, int], bytes]
    """Name, offset and length -> bytes; fewer at the end of the file. Raises FetchError and OSError."""


def open_files(uri: str, keys: Credentials) -> Files | None:
    """The folder that `uri` names; None for an archive, which cannot be looked into. Raises FetchError, OSError."""
    match urlsplit(uri).scheme:
        case "hf":
            from tunesmith.fetching import hub

            return Files(
                "it", hub.names(uri, keys), lambda name, start, length: hub.read(uri, name, start, length, keys)
            )
        case "ms":
            from tunesmith.fetching import modelscope

            return Files(
                "it",
                modelscope.names(uri, keys),
                lambda name, start, length: modelscope.read(uri, name, start, length, keys),
            )
        case "s3":
            from tunesmith.fetching import s3

            bucket, objects = s3.find(uri, keys)
            return Files("it", list(objects), lambda name, start, length: bucket.read(objects[name], start, length))
        case "https":
            return None
        case _:
            folder = Path(locate(uri).path)
            names = [path.relative_to(folder).as_posix() for path in folder.iterdir() if path.is_file()]
            return Files(str(folder), names, lambda name, start, length: _read(folder / name, start, length))


def _read(path: Path, start: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(length)
