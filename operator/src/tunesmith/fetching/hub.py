"""Repositories of the Hugging Face Hub (or a mirror: the client's own HF_ENDPOINT)."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunesmith.fetching import NOT_FOUND, PERMANENT, TRANSIENT, Credentials, FetchError, Kind, Progress

TIMEOUT = 60
URI = re.compile(r"hf://(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
# Weights in other formats than safetensors, training leftovers, pickles: never read, often large.
NOT_IN_A_MODEL = [
    *("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.h5", "*.msgpack", "*.onnx", "*.ot", "*.gguf"),
    *("checkpoint-*/*", "original/*", "runs/*", "onnx/*", "openvino/*"),
    ".gitattributes",
]
LEFT_OUT = {"model": NOT_IN_A_MODEL, "dataset": [".gitattributes"]}
"""By kind. `.gitattributes` is the repository's, not what lies in it."""


def repository_of(uri: str) -> tuple[str, str | None]:
    """Repository and revision."""
    match = URI.fullmatch(uri)
    if match is None:
        raise FetchError("not of the form hf://org/name@revision")
    return match["repository"], match["revision"]


def fetch(uri: str, folder: Path, keys: Credentials, kind: Kind, progress: Progress) -> None:
    """Fetch a repository at a revision: a model, or with `auto` a dataset where there is no such model."""
    repository, revision = repository_of(uri)
    if kind == "auto":
        try:
            _snapshot(repository, revision, "model", folder, keys, progress)
        except FetchError as error:
            if error.code != NOT_FOUND:
                raise
            _snapshot(repository, revision, "dataset", folder, keys, progress)
    else:
        _snapshot(repository, revision, kind, folder, keys, progress)


def names(uri: str, keys: Credentials) -> list[str]:
    """Names of a model's files."""
    repository, revision = repository_of(uri)
    with told(revision, "model", keys):
        from huggingface_hub import HfApi

        return HfApi().list_repo_files(repository, revision=revision, token=token_of(keys))


def read(uri: str, name: str, start: int, length: int, keys: Credentials, kind: Kind = "model") -> bytes:
    """A part of one of a repository's files."""
    repository, revision = repository_of(uri)
    with told(revision, kind, keys):
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]  # exported, but not by __all__
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        headers = {**build_hf_headers(token=token_of(keys)), "range": f"bytes={start}-{start + length - 1}"}
        url, data = hf_hub_url(repository, name, repo_type=kind, revision=revision), b""
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT) as response:
            hf_raise_for_status(response)
            skip = 0 if response.status_code == 206 else start  # a server without ranges sends all
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) >= skip + length:
                    break
        return data[skip : skip + length]


def token_of(keys: Credentials) -> Any:
    """The token of the Secret; without one, nobody's."""
    return keys.get("token") or False  # never a token that lies around on the machine


def _snapshot(
    repository: str, revision: str | None, kind: Kind, folder: Path, keys: Credentials, progress: Progress
) -> None:
    from huggingface_hub import snapshot_download

    start = time.monotonic()
    progress(f"{repository}: fetching the {kind} at {revision or 'its newest revision'}")
    with told(revision, kind, keys):
        snapshot_download(
            repository,
            repo_type=kind,
            revision=revision,
            local_dir=folder,
            token=token_of(keys),
            ignore_patterns=LEFT_OUT[kind],
        )
    files = [p for p in folder.rglob("*") if p.is_file() and ".cache" not in p.parts]
    size = sum(p.stat().st_size for p in files)
    progress(f"{repository}: {len(files)} files, {size >> 20} MiB in {time.monotonic() - start:.1f} s")


@contextmanager
def told(revision: str | None, kind: str, keys: Credentials) -> Iterator[None]:
    """What goes wrong in the Hub's client, as a FetchError."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except FetchError:
        raise
    except GatedRepoError:
        raise FetchError("access is granted by its owner: ask for it, and name a Secret with a token") from None
    except RevisionNotFoundError:
        raise FetchError(f"there is no revision {revision}: check the part after @", NOT_FOUND) from None
    except RepositoryNotFoundError:
        hint = "" if keys.get("token") else ", or private: name a Secret with a token in secretRef"
        raise FetchError(f"there is no such {kind}{hint}", NOT_FOUND) from None
    except LocalEntryNotFoundError as error:
        raise FetchError(f"the Hub cannot be reached from the pod ({error.__cause__ or error})", TRANSIENT) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise FetchError(f"the Hub answers {status}: check the token in secretRef", PERMANENT) from None
        raise FetchError(f"the Hub answers {status}: {error}", TRANSIENT) from None
    except (OSError, RuntimeError) as error:
        raise FetchError(f"{error}", TRANSIENT) from error
    except Exception as error:  # the client lets its HTTP library's errors through
        raise FetchError(f"{type(error).__name__}: {error}", TRANSIENT) from error
