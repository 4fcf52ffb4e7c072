"""Where an address is found inside a container."""

from __future__ import annotations

import hashlib
import posixpath
from dataclasses import dataclass

CLAIMS = "/mnt/claims"
CONFIG_MAPS = "/mnt/configmaps"
FETCHED = "/mnt/fetched"
IMAGES = "/mnt/images"
SECRETS = "/mnt/secrets"


@dataclass(frozen=True)
class Location:
    """The place of one address: a path, and what must be mounted or fetched for it to be there."""

    uri: str
    path: str
    claim: str | None = None
    config_map: str | None = None
    fetch: bool = False
    """Whether it is fetched: onto `claim` where that is set."""
    image: bool = False
    """Whether the kubelet mounts it as an image."""


def locate(uri: str) -> Location:
    """The place of `uri` in the containers of a pod. Addresses are checked by the CRD's schema already; no `..` of
    theirs leads out of what they name.
    """
    scheme, _, rest = uri.partition("://")
    name, _, path = rest.partition("/")
    inside = posixpath.normpath("/" + path.lstrip("/"))
    match scheme:
        case "pvc":
            return Location(uri, f"{CLAIMS}/{name}{inside}".rstrip("/"), claim=name)
        case "configmap":
            return Location(uri, f"{CONFIG_MAPS}/{name}{inside}".rstrip("/"), config_map=name)
        case "file":
            return Location(uri, inside)
        case _:
            name = hashlib.sha256(uri.encode()).hexdigest()[:16]
            return Location(uri, f"{FETCHED}/{name}", fetch=True)


def join(uri: str, *parts: str) -> str:
    """`uri` with path parts added."""
    return "/".join([uri.rstrip("/"), *parts])
