"""Repositories of ModelScope (or a mirror: MODELSCOPE_ENDPOINT, the variable of its own client).

Its own client (modelscope-hub) would bring cryptography into the operator's image, 16 MB of 120, and reads pickled
credentials from the home folder; what is needed of the API are two requests. Tests hold both against each other.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import urllib.error
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tunesmith.fetching import NOT_FOUND, PERMANENT, TRANSIENT, Credentials, FetchError, Kind, Progress
from tunesmith.fetching.hub import LEFT_OUT
from tunesmith.fetching.web import BROKEN, TIMEOUT, download, opener, ranged

URI = re.compile(r"ms://(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
ENDPOINT = "https://modelscope.cn"
PAGE = 200
MOST = 3000
"""Files that the server lists of a model, without a word of those that it leaves out."""


def fetch(uri: str, folder: Path, keys: Credentials, kind: Kind, progress: Progress) -> None:
    """Fetch a repository at a revision: a model, or with `auto` a dataset where there is no such model."""
    repository, revision = repository_of(uri)
    kinds = ["model", "dataset"] if kind == "auto" else [kind]
    for one in kinds:
        try:
            files = listed(repository, revision, one, keys)
            break
        except FetchError as error:
            if error.code != NOT_FOUND or one == kinds[-1]:
                raise
    progress(f"{repository}: fetching the {one} at {revision}, {len(files)} files")
    for file in files:
        name = str(file["Path"])
        if any(fnmatch(name, pattern) for pattern in LEFT_OUT[one]):
            continue
        target = folder / name
        if not target.resolve().is_relative_to(folder.resolve()):
            raise FetchError(f"it lists a file outside itself: {name}")
        if not whole(target, file):
            target.parent.mkdir(parents=True, exist_ok=True)
            download(getter(repository, revision, one, name, keys), target, progress, file.get("Size"))
            if not whole(target, file):
                target.unlink()
                raise FetchError(f"{name} is not what the repository says it is: try again", TRANSIENT)


def names(uri: str, keys: Credentials) -> list[str]:
    """Names of a model's files."""
    repository, revision = repository_of(uri)
    return [str(file["Path"]) for file in listed(repository, revision, "model", keys)]


def read(uri: str, name: str, start: int, length: int, keys: Credentials, kind: Kind = "model") -> bytes:
    """A part of one of a repository's files."""
    repository, revision = repository_of(uri)
    with told(getter(repository, revision, kind, name, keys), kind, start) as response:
        skip = 0 if response.status == 206 or not start else start  # a server without ranges sends all
        data: bytes = response.read(skip + length)
    return data[skip : skip + length]


def repository_of(uri: str) -> tuple[str, str]:
    """Repository and revision."""
    match = URI.fullmatch(uri)
    if match is None:
        raise FetchError("not of the form ms://org/name@revision")
    return match["repository"], match["revision"] or "master"


def listed(repository: str, revision: str, kind: str, keys: Credentials) -> list[dict[str, Any]]:
    """The files of a repository: each with its Path, and Size and Sha256 where the server says them."""
    every: list[dict[str, Any]] = []
    path = f"{kind}s/{repository}/repo/{'tree' if kind == 'dataset' else 'files'}"
    for page in range(1, 1_000_000):
        query = {"Revision": revision, "Recursive": "True"}
        if kind == "dataset":
            query |= {"PageNumber": str(page), "PageSize": str(PAGE)}
        with told(request(address(path, query), keys), kind) as response:
            answer = json.load(response)
        if answer.get("Success") is False:
            raise FetchError(f"ModelScope answers: {answer.get('Message')}", NOT_FOUND)
        data = answer.get("Data") or []
        files = data if isinstance(data, list) else data.get("Files") or []
        every += files
        if kind != "dataset" or len(files) < PAGE:
            break
    if kind == "model" and len(every) >= MOST:
        raise FetchError(
            f"it has more than {MOST} files, which ModelScope does not list: use hf:// or a claim", PERMANENT
        )
    return [file for file in every if file.get("Type") != "tree"]


def whole(path: Path, file: dict[str, Any]) -> bool:
    """Whether a file is there as the repository says."""
    if not path.is_file() or file.get("Size", path.stat().st_size) != path.stat().st_size:
        return False
    if not (wanted := file.get("Sha256")):
        return True
    with path.open("rb") as content:
        return bool(hashlib.file_digest(content, "sha256").hexdigest() == wanted)


def address(path: str, query: dict[str, str] | None = None) -> str:
    """A request's URL."""
    endpoint = os.environ.get("MODELSCOPE_ENDPOINT") or ENDPOINT
    endpoint = endpoint if "://" in endpoint else f"https://{endpoint}"
    return f"{endpoint.rstrip('/')}/api/v1/{path}" + (f"?{urlencode(query)}" if query else "")


def getter(repository: str, revision: str, kind: str, name: str, keys: Credentials) -> Callable[[int], Any]:
    """What opens a file from an offset on."""
    return request(address(f"{kind}s/{repository}/repo", {"Revision": revision, "FilePath": name}), keys)


def request(url: str, keys: Credentials) -> Callable[[int], Any]:
    """What opens an address."""
    return lambda offset: opener().open(ranged(url, who(keys), offset), timeout=TIMEOUT)


def who(keys: Credentials) -> dict[str, str]:
    """The token, as a header and, which older parts of the API want, as a cookie."""
    token = keys.get("token")
    return {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}


def told(get: Callable[[int], Any], kind: str = "model", offset: int = 0) -> Any:
    """A response, or what went wrong as a FetchError."""
    try:
        return get(offset)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 404:
                raise FetchError(
                    f"there is no such {kind} or revision, or it is private: see secretRef", NOT_FOUND
                ) from None
            if error.code in (401, 403):
                raise FetchError(
                    f"ModelScope answers {error.code}: check the token in secretRef", PERMANENT, error.code
                ) from None
            raise FetchError(f"ModelScope answers {error.code} {error.reason}", TRANSIENT) from None
    except BROKEN as error:
        reason = getattr(error, "reason", error)
        raise FetchError(f"ModelScope cannot be reached from the pod ({reason})", TRANSIENT) from None
