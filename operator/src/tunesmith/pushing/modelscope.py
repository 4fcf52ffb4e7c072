"""To a repository of ModelScope: large files as LFS objects, then one commit, so all of it is visible at once.

As for fetching, its own client would be too much for the operator's image: what is needed are four requests. Tests hold
both against each other.
"""

from __future__ import annotations

import base64
import json
import urllib.request
import uuid
from pathlib import PurePosixPath
from typing import Any

from tunesmith import artifacts
from tunesmith.fetching import NOT_FOUND, PERMANENT, Credentials, FetchError, Kind, Progress, modelscope
from tunesmith.fetching.web import send
from tunesmith.pushing.content import MAX_MANIFEST, Content, File

PRIVATE, PUBLIC = 1, 5
MOST_ACTIONS = 2000
"""Files of a commit, which the server allows."""
INLINE_BYTES = 64 * 1024
"""A larger file goes to LFS."""
# The hub reads them itself, so they never go to LFS.
INLINE = {"README.md", ".gitattributes", ".gitignore", "configuration.json", "config.json"}


def push(uri: str, content: Content, keys: Credentials, private: bool, progress: Progress) -> str | None:
    """Make the head of a branch the artefact. Returns the commit, where it is said. Raises FetchError and HTTPError."""
    repository, branch = modelscope.repository_of(uri)
    kind = content.repository_kind
    there = listed(repository, branch, kind, keys)
    if there is None:
        create(repository, content, keys, private)
        there = listed(repository, branch, kind, keys) or {}
    if artifacts.MANIFEST in there and content.is_that_of(
        modelscope.read(uri, artifacts.MANIFEST, 0, MAX_MANIFEST, keys, kind)
    ):
        progress(f"{repository} has it already")
        return revision(there)
    gone = [name for name in there if name not in content.files and name != ".gitattributes"]
    if len(content.files) + len(gone) > MOST_ACTIONS:
        raise FetchError(f"a commit of ModelScope has at most {MOST_ACTIONS} files", PERMANENT)
    progress(f"{repository}: {len(content.files)} files to {branch}")
    upload(f"repos/{kind}s/{repository}", [file for name, file in content.files.items() if is_large(name, file)], keys)
    actions = [
        *(action("create", name, file) for name, file in content.files.items()),
        *(action("delete", name) for name in gone),
    ]
    ask(
        "POST",
        f"repos/{kind}s/{repository}/commit/{branch}",
        keys,
        {"commit_message": content.message, "actions": actions},
    )
    return revision(listed(repository, branch, kind, keys) or {})


def listed(repository: str, branch: str, kind: Kind, keys: Credentials) -> dict[str, dict[str, Any]] | None:
    """The files of a repository by name; None: there is no such repository, as far as the token tells."""
    try:
        return {str(file["Path"]): file for file in modelscope.listed(repository, branch, kind, keys)}
    except FetchError as error:
        if error.code == NOT_FOUND:
            return None
        raise


def revision(there: dict[str, dict[str, Any]]) -> str | None:
    """The commit that wrote the manifest."""
    found = there.get(artifacts.MANIFEST, {}).get("Revision")
    return str(found) if found else None


def create(repository: str, content: Content, keys: Credentials, private: bool) -> None:
    """Make the repository."""
    owner, name = repository.split("/")
    body = {"Name": name, "Visibility": PRIVATE if private else PUBLIC}
    body |= {"License": content.license} if content.license else {}
    if content.repository_kind == "model":
        ask("POST", "models", keys, {"Path": owner, **body})
    else:
        ask_by_form("datasets", keys, {"Owner": owner, **body})


def is_large(name: str, file: File) -> bool:
    """Whether a file goes to LFS."""
    path = PurePosixPath(name)
    return path.name not in INLINE and (path.suffix == ".safetensors" or file.size > INLINE_BYTES)


def upload(path: str, files: list[File], keys: Credentials) -> None:
    """Write the LFS objects that are not there."""
    if not files:
        return
    wanted = {"operation": "upload", "objects": [{"oid": file.sha256, "size": file.size} for file in files]}
    answer = ask("POST", f"{path}/info/lfs/objects/batch", keys, wanted)
    by_digest = {file.sha256: file for file in files}
    for one in answer.get("objects", []):
        where = one.get("actions", {}).get("upload", {}).get("href")
        if where:  # none: it is there
            send_file(where, by_digest[one["oid"]], keys)


def send_file(url: str, file: File, keys: Credentials) -> None:
    """Write one LFS object. Its server, too, wants to know who we are."""
    headers = {**modelscope.who(keys), "Content-Length": str(file.size), "Content-Type": "application/octet-stream"}
    with file.path.open("rb") as source:

        def again() -> urllib.request.Request:
            source.seek(0)
            return urllib.request.Request(url, source, headers, method="PUT")

        checked(send(again)[1])


def action(what: str, name: str, file: File | None = None) -> dict[str, Any]:
    """What a commit does to one file."""
    large = file is not None and is_large(name, file)
    inline = file is not None and not large
    return {
        "action": what,
        "path": name,
        "type": "lfs" if large else "normal",
        "size": file.size if file else 0,
        "sha256": file.sha256 if file and large else "",
        "content": base64.b64encode(file.path.read_bytes()).decode() if file and inline else "",
        "encoding": "base64" if inline else "",
    }


def ask(method: str, path: str, keys: Credentials, body: dict[str, Any]) -> dict[str, Any]:
    """The data of an answer."""
    return sent(method, path, keys, json.dumps(body).encode(), "application/json")


def ask_by_form(path: str, keys: Credentials, fields: dict[str, Any]) -> dict[str, Any]:
    """The same, for what the server takes as a form only."""
    mark = uuid.uuid4().hex
    parts = [f'--{mark}\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n{v}\r\n' for n, v in fields.items()]
    data = "".join([*parts, f"--{mark}--\r\n"]).encode()
    return sent("POST", path, keys, data, f"multipart/form-data; boundary={mark}")


def sent(method: str, path: str, keys: Credentials, data: bytes, type_: str) -> dict[str, Any]:
    """The data of the answer to a body of the given type."""
    url, headers = modelscope.address(path), {**modelscope.who(keys), "Content-Type": type_}
    return checked(send(lambda: urllib.request.Request(url, data, headers, method=method))[1])


def checked(body: bytes) -> dict[str, Any]:
    """The data of an answer that says itself whether it is one. Raises FetchError."""
    try:
        found = json.loads(body or b"{}")
    except ValueError:
        return {}  # of a store that only says 200
    if found.get("Success") is False or found.get("Code") not in (200, "200", None):
        raise FetchError(f"ModelScope answers: {found.get('Message')}", PERMANENT)
    data = found.get("Data", found)
    return data if isinstance(data, dict) else {}
