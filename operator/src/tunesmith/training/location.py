"""Where an address is found inside a container."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from urllib.parse import urlsplit

CLAIMS = "/mnt/claims"
CONFIG_MAPS = "/mnt/configmaps"
FETCHED = "/mnt/fetched"


@dataclass(frozen=True)
class Location:
    """The place of one address: a path, and what must be mounted or fetched for it to be there."""

    uri: str
    path: str
    claim: str | None = None
    config_map: str | None = None
    fetch: bool = False


def locate(uri: str) -> Location:
    """The place of `uri` in the containers of a pod. Addresses are checked by the CRD's schema already."""
    parts = urlsplit(uri)
    match parts.scheme:
        case "pvc":
            return Location(uri, f"{CLAIMS}/{parts.netloc}{parts.path}".rstrip("/"), claim=parts.netloc)
        case "configmap":
            return Location(uri, f"{CONFIG_MAPS}/{parts.netloc}{parts.path}", config_map=parts.netloc)
        case "file":
            return Location(uri, parts.path)
        case _:
            name = hashlib.sha256(uri.encode()).hexdigest()[:16]
            return Location(uri, f"{FETCHED}/{name}", fetch=True)


def join(uri: str, *parts: str) -> str:
    """`uri` with path parts added."""
    return "/".join([uri.rstrip("/"), *parts])
