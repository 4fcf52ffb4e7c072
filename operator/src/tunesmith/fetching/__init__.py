"""Fetches what an address names into a folder: `hf://`, `ms://`, `s3://`, `gs://`, `oci://`, and `https://` with a
digest.

The folder appears by rename, so what is there is whole. A fetch that was interrupted goes on where it was.
A single file lies in the folder under its own name.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

# Exit codes. What is not there (yet) may be there later, other permanent errors need a change.
TRANSIENT, PERMANENT, NOT_FOUND = 1, 2, 3

Kind = Literal["auto", "model", "dataset"]
Progress = Callable[[str], None]
Credentials = Mapping[str, str]


class FetchError(Exception):
    """What went wrong and what to do."""

    def __init__(self, message: str, code: int = PERMANENT, status: int | None = None) -> None:
        super().__init__(message)
        self.code, self.status = code, status
        """Exit code, and the status of HTTP with which a server refused, if one did."""


def credentials(folder: Path | None) -> dict[str, str]:
    """The keys of a mounted Secret."""
    if folder is None:
        return {}
    if not folder.is_dir():
        raise FetchError(f"the Secret's folder {folder} is not there: mount it", TRANSIENT)
    files = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith("..")]
    return {path.name: path.read_text().strip() for path in files}


def fetch(uri: str, to: Path, secret: Path | None = None, kind: Kind = "auto", progress: Progress = print) -> Path:
    """Fetch `uri` into the folder `to`. Where that is there already, nothing is done. Raises FetchError."""
    if to.exists():
        progress(f"{uri} is at {to} already")
        return to
    partial = to.with_name(f"{to.name}.partial")
    try:
        keys = credentials(secret)
        partial.mkdir(parents=True, exist_ok=True)
        match urlsplit(uri).scheme:
            case "hf":
                from tunesmith.fetching import hub

                hub.fetch(uri, partial, keys, kind, progress)
            case "ms":
                from tunesmith.fetching import modelscope

                modelscope.fetch(uri, partial, keys, kind, progress)
            case "https":
                from tunesmith.fetching import web

                web.fetch(uri, partial, keys, progress)
            case "oci":
                from tunesmith.fetching import oci

                oci.fetch(uri, partial, keys, progress)
            case "s3" | "gs":
                from tunesmith.fetching import s3

                s3.fetch(uri, partial, keys, progress)
            case scheme:
                raise FetchError(f"{scheme}:// cannot be fetched: use hf://, ms://, https://, s3://, gs:// or oci://")
    except FetchError as error:
        raise FetchError(f"{uri}: {error}", error.code) from None
    except OSError as error:
        raise FetchError(f"{uri}: {error}: is the volume of {to.parent} full or read-only?", TRANSIENT) from error
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # the Hub client's notes
    for note in partial.glob(".sha256-*.done"):
        note.unlink()
    partial.rename(to)
    progress(f"{uri} is at {to}")
    return to
