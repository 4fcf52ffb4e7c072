"""To a registry, as `oras push` does: a layer for each file, with its name as title. The manifest comes last, and with
it all is visible at once. https://github.com/opencontainers/distribution-spec/blob/main/spec.md#push
"""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import Message
from pathlib import Path
from typing import get_args
from urllib.parse import urljoin, urlsplit

from tunesmith.api.base import ArtifactKind
from tunesmith.fetching import PERMANENT, Credentials, FetchError, Progress
from tunesmith.fetching.oci import MANIFESTS, TITLE, Registry, parsed
from tunesmith.fetching.web import send
from tunesmith.pushing.content import Content

MANIFEST = MANIFESTS[0]
EMPTY = b"{}"
EMPTY_DIGEST = f"sha256:{hashlib.sha256(EMPTY).hexdigest()}"
# https://github.com/opencontainers/image-spec/blob/main/manifest.md#guidelines-for-artifact-usage
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
TYPES = {kind: f"application/vnd.tunesmith.{kind.removesuffix('s')}.v1" for kind in get_args(ArtifactKind)}


def manifest(content: Content) -> bytes:
    """The manifest of an artefact, always the same bytes for the same files."""
    layers = [
        {
            "mediaType": "application/octet-stream",
            "digest": f"sha256:{file.sha256}",
            "size": file.size,
            "annotations": {TITLE: name},
        }
        for name, file in content.files.items()
    ]
    body = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": TYPES[content.manifest["kind"]],
        "config": {"mediaType": EMPTY_TYPE, "digest": EMPTY_DIGEST, "size": len(EMPTY)},
        "layers": layers,
        "annotations": {"io.tunesmith.digest": content.digest},
    }
    return json.dumps(body, sort_keys=True).encode()


def push(uri: str, content: Content, keys: Credentials, progress: Progress) -> str:
    """Give the artefact a tag. Returns the manifest's digest. Raises FetchError and HTTPError."""
    match = parsed(uri)
    if not match["tag"] or match["digest"]:
        raise FetchError("an artefact is pushed to a tag: oci://registry/repository:tag", PERMANENT)
    pusher = Pusher(Registry(match["registry"], match["repository"], keys, "pull,push"))
    body = manifest(content)
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    if pusher.digest_of(match["tag"]) == digest:
        progress(f"{uri} has it already")
        return digest
    pusher.blob(EMPTY_DIGEST, len(EMPTY), EMPTY)
    for name, file in content.files.items():
        progress(f"{name}: {file.size} bytes")
        pusher.blob(f"sha256:{file.sha256}", file.size, file.path)
    pusher.send("PUT", f"manifests/{match['tag']}", {"Content-Type": MANIFEST}, body)
    return digest


class Pusher:
    """Writes to one repository of a registry."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def send(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | Path | None = None
    ) -> tuple[Message, bytes]:
        """The answer to a request, of which `path` may be a whole address elsewhere. A file is read as it is sent."""
        url = urljoin(self.registry.base, path)
        ours = urlsplit(url).netloc == self.registry.host

        def ask(who: Mapping[str, str]) -> tuple[Message, bytes]:
            every = {**(headers or {}), **(who if ours else {})}
            if not isinstance(body, Path):
                return send(lambda: urllib.request.Request(url, body, every, method=method))
            with body.open("rb") as file:

                def again() -> urllib.request.Request:
                    file.seek(0)
                    return urllib.request.Request(url, file, every, method=method)

                return send(again)

        return self.registry.known(ask)

    def digest_of(self, tag: str) -> str | None:
        """Digest of the manifest that the tag names; None: there is none."""
        try:
            _, body = self.send("GET", f"manifests/{tag}", {"Accept": ", ".join(MANIFESTS)})
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            error.close()
            return None
        return f"sha256:{hashlib.sha256(body).hexdigest()}"

    def blob(self, digest: str, size: int, body: bytes | Path) -> None:
        """Write a blob, if it is not there."""
        try:
            self.send("HEAD", f"blobs/{digest}")
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            error.close()
        else:
            return
        headers, _ = self.send("POST", "blobs/uploads/", {"Content-Length": "0"}, b"")
        where = headers["Location"]
        where += ("&" if urlsplit(where).query else "?") + f"digest={digest}"
        self.send("PUT", where, {"Content-Type": "application/octet-stream", "Content-Length": str(size)}, body)
