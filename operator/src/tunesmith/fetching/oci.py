"""Artefacts and images in an OCI registry: `oci://registry/repository:tag` or `@sha256:digest`.

Layers with a title are files, as `oras push` makes them; others are tar archives, as in images. All are checked by
their digests. https://github.com/opencontainers/distribution-spec/blob/main/spec.md
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlencode

from tunesmith.fetching import NOT_FOUND, PERMANENT, TRANSIENT, Credentials, FetchError, Progress
from tunesmith.fetching.web import BROKEN, TIMEOUT, download, opener, ranged, refusal

URI = re.compile(
    r"oci://(?P<registry>[\w.-]+(:\d+)?)/(?P<repository>[\w./-]+?)(:(?P<tag>[\w.-]+))?(@(?P<digest>sha256:[a-f0-9]{64}))?"
)
MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
TITLE = "org.opencontainers.image.title"
MAX_MANIFEST = 4 * 1024 * 1024
Answer = TypeVar("Answer")


class Registry:
    """One repository of a registry, and who we are there."""

    def __init__(self, host: str, repository: str, keys: Credentials, actions: str = "pull") -> None:
        self.host, self.repository, self.actions = host, repository, actions
        self.base = f"https://{host}/v2/{repository}/"
        self.basic = basic(keys, host)
        self.headers: dict[str, str] = {}

    def open(self, path: str, offset: int = 0, accept: str = "*/*") -> Any:
        """The response to a GET below the repository."""
        return self.known(lambda who: self._get(path, offset, {"Accept": accept, **who}))

    def known(self, ask: Callable[[Mapping[str, str]], Answer]) -> Answer:
        """What `ask` gets with the headers that say who we are. Where the registry asks for them, or does not take them
        any more, they are made anew, once.
        """
        try:
            return ask(self.headers)
        except urllib.error.HTTPError as error:
            challenge = error.headers.get("WWW-Authenticate", "")
            if error.code != 401 or not challenge:
                raise
            error.close()
        self.headers = {"Authorization": self._authorization(challenge)}
        return ask(self.headers)

    def _get(self, path: str, offset: int, headers: Mapping[str, str]) -> Any:
        return opener().open(ranged(self.base + path, headers, offset), timeout=TIMEOUT)

    def _authorization(self, challenge: str) -> str:
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic":
            return self.basic
        asked = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        realm = asked.pop("realm", "")
        if not realm.startswith("https://"):
            raise FetchError(f"{self.host} sends us to {realm!r} for a token, which is not https")
        asked = {"service": asked.get("service", ""), "scope": f"repository:{self.repository}:{self.actions}"}
        request = urllib.request.Request(f"{realm}?{urlencode(asked)}")
        if self.basic:
            request.add_header("Authorization", self.basic)
        with opener().open(request, timeout=TIMEOUT) as response:
            body = json.loads(response.read(MAX_MANIFEST))
        return f"Bearer {body.get('token') or body.get('access_token')}"

    def manifest(self, reference: str) -> dict[str, Any]:
        """The manifest of an artefact; of an index, that of its first one."""
        with self.open(f"manifests/{reference}", accept=", ".join(MANIFESTS)) as response:
            data = response.read(MAX_MANIFEST)
        check(reference, data)
        body: dict[str, Any] = json.loads(data)
        return self.manifest(body["manifests"][0]["digest"]) if "manifests" in body else body


def basic(keys: Credentials, host: str) -> str:
    """The header of who we are, from `username` and `password`, or from a Docker configuration; empty: nobody."""
    if "username" in keys:
        pair = f"{keys['username']}:{keys.get('password', '')}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"
    try:
        servers = json.loads(keys.get(".dockerconfigjson", "{}")).get("auths", {})
        entry = next((v for k, v in servers.items() if k.split("://")[-1].split("/")[0] == host), None)
        if entry is None:
            return ""
        pair = f"{entry.get('username', '')}:{entry.get('password', '')}"
        return f"Basic {entry.get('auth') or base64.b64encode(pair.encode()).decode()}"
    except (ValueError, AttributeError) as error:
        raise FetchError(f"the Secret's .dockerconfigjson is none ({error}): make it with kubectl") from None


def check(digest: str, data: bytes) -> None:
    """See that data is what its digest says, where it is a digest."""
    if digest.startswith("sha256:") and hashlib.sha256(data).hexdigest() != digest.removeprefix("sha256:"):
        raise FetchError(f"the registry sends something else as {digest}: try again", TRANSIENT)


def parsed(uri: str) -> re.Match[str]:
    """The parts of an address: registry, repository, tag, digest. Raises FetchError."""
    match = URI.fullmatch(uri)
    if match is None:
        raise FetchError("not of the form oci://registry/repository:tag or oci://registry/repository@sha256:digest")
    return match


def fetch(uri: str, folder: Path, keys: Credentials, progress: Progress) -> None:
    """Fetch all layers of an artefact. Raises FetchError."""
    match = parsed(uri)
    registry = Registry(match["registry"], match["repository"], keys)
    try:
        manifest = registry.manifest(match["digest"] or match["tag"] or "latest")
        layers = [dict(layer) for layer in manifest["layers"]]
    except urllib.error.HTTPError as error:
        with error:
            if error.code >= 500:
                raise FetchError(f"{registry.host} answers {error.code}: try later", TRANSIENT) from None
            raise refusal(error) from None
    except BROKEN as error:
        reason = getattr(error, "reason", error)
        raise FetchError(f"{registry.host}: {reason}: is it right and reachable?", TRANSIENT) from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise FetchError(f"{registry.host} does not answer as a registry does ({error!r}): check the address") from None
    if not layers:
        raise FetchError("the artefact has no layers: push files to it", NOT_FOUND)
    for layer in layers:
        _layer(registry, layer, folder, progress)


def _layer(registry: Registry, layer: Mapping[str, Any], folder: Path, progress: Progress) -> None:
    digest, size = str(layer["digest"]), int(layer["size"])
    title = (layer.get("annotations") or {}).get(TITLE)
    name = title or f".{digest.replace(':', '-')}.tar"
    if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
        raise FetchError(f"the layer {name} would be written outside of the folder", PERMANENT)
    target = folder / name
    done = folder / f".{digest.replace(':', '-')}.done"
    if done.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    progress(f"{name}: {size} bytes")
    download(lambda offset: registry.open(f"blobs/{digest}", offset), target, progress, size)
    with target.open("rb") as file:
        found = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    if found != digest:
        target.unlink()
        raise FetchError(f"{name} has {found}, not {digest}: the transfer was damaged, or the registry", TRANSIENT)
    if not title:
        _unpack(target, folder)
    done.touch()


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack a layer of an image: nothing outside of the folder, no links out of it, no devices."""
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    except tarfile.TarError as error:
        raise FetchError(f"a layer cannot be unpacked: {error}", PERMANENT) from None
    finally:
        archive.unlink()
