"""Addresses of a job -> files on this machine. What is not here is fetched by the code of the fetching pods.

| address | here |
|---|---|
| `path`, `./path` | beside the job's file |
| `file:///path` | as it stands |
| `hf://`, `ms://`, `s3://`, `https://…#sha256=` | fetched, into `<claims>/.tunesmith/fetched` |
| `pvc://claim/path` | `<claims>/claim/path` |
| `configmap://name/key` | the ConfigMap in the same file |
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlsplit

from tunesmith.fetching import TRANSIENT, FetchError, Kind, fetch
from tunesmith.training.location import FETCHED, locate

from tunesmith_trainer.errors import DataError, InternalError, ModelError

DATA = ("datasets", "validation")
"""Parts of a spec whose addresses are those of datasets."""
OWN = ".tunesmith"
CREDENTIALS = {
    "hf": {"token": "HF_TOKEN"},
    "ms": {"token": "MODELSCOPE_API_TOKEN"},
    "s3": {
        "accessKeyId": "AWS_ACCESS_KEY_ID", "secretAccessKey": "AWS_SECRET_ACCESS_KEY",
        "endpoint": "AWS_ENDPOINT_URL", "region": "AWS_REGION",
    },
    "oci": {"username": "REGISTRY_USERNAME", "password": "REGISTRY_PASSWORD"},
}  # fmt: skip
"""By scheme, the keys of a Secret and the variables of the environment that stand for them here."""


def holders(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """(path, object) of all that has a `uri` in a spec."""
    if isinstance(value, dict):
        if isinstance(value.get("uri"), str):
            yield path, value
        for name, one in value.items():
            yield from holders(one, (*path, name))
    elif isinstance(value, list):
        for one in value:
            yield from holders(one, path)


def from_paths(spec: dict[str, Any], folder: Path) -> None:
    """Turn plain paths of a spec, which are meant from `folder`, into file:// addresses, in place."""
    for path, holder in holders(spec):
        if path != ("output",) and "://" not in holder["uri"]:
            holder["uri"] = "file://" + os.path.abspath(folder / Path(holder["uri"]).expanduser())


@contextmanager
def keys_here(uri: str) -> Iterator[Path]:
    """A folder like a mounted Secret, readable by this user alone, with the keys that the environment has for `uri`."""
    with TemporaryDirectory() as secret:
        for key, variable in CREDENTIALS.get(urlsplit(uri).scheme, {}).items():
            if variable in os.environ:
                Path(secret, key).write_text(os.environ[variable])
        yield Path(secret)


@dataclass
class Here:
    """This machine: where a job's files are."""

    claims: Path
    """The folder in which a folder stands for each claim."""
    config_maps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    """file:// address -> the address that it stands for, of all that was looked up."""

    def localize(self, spec: dict[str, Any]) -> None:
        """Replace the addresses of a spec by those of files here, in place; fetch what is not here."""
        for path, holder in holders(spec):
            kind: Kind = "dataset" if path and path[0] in DATA else "model"
            found = self.path(holder["uri"], kind)
            if not found.exists():
                error = DataError if kind == "dataset" else ModelError
                raise error(f"spec.{'.'.join(path)}: {holder['uri']}: there is no file or folder {found}")
            local = f"file://{found}"
            self.origins[local] = holder["uri"]
            holder["uri"] = local
            holder.pop("secretRef", None)

    def path(self, uri: str, kind: Kind) -> Path:
        """Where the files of an address are."""
        place = locate(uri)
        if place.claim:
            return self.claims / place.claim / urlsplit(uri).path.strip("/")
        if place.config_map:
            return self._config_map(place.config_map, urlsplit(uri).path.strip("/"), uri)
        if place.fetch:
            return self._fetched(uri, Path(place.path).relative_to(FETCHED), kind)
        return Path(place.path)

    def _config_map(self, name: str, key: str, uri: str) -> Path:
        if key not in self.config_maps.get(name, {}):
            raise DataError(f"{uri}: the job's file has no ConfigMap {name} with the key {key}: put it there")
        path = self.claims / OWN / "configmaps" / name / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.config_maps[name][key])
        return path

    def _fetched(self, uri: str, name: Path, kind: Kind) -> Path:
        try:
            with keys_here(uri) as secret:
                return fetch(uri, self.claims / OWN / "fetched" / name, secret, kind)
        except FetchError as error:
            if error.code == TRANSIENT:
                raise InternalError(str(error)) from None
            raise (DataError if kind == "dataset" else ModelError)(str(error)) from None

    def restored(self, plan: Any) -> Any:
        """A plan's body with the addresses as the spec has them, so that lineage names them; paths stay."""
        if isinstance(plan, list):
            return [self.restored(one) for one in plan]
        if not isinstance(plan, dict):
            return plan
        found = {name: self.restored(one) for name, one in plan.items()}
        if "path" in found and found.get("uri") in self.origins:
            found["uri"] = self.origins[found["uri"]]
        return found
