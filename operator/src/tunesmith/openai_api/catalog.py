"""The models that may be fine-tuned: a table that the chart writes from its values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, RootModel

from tunesmith.api.base import API_VERSION
from tunesmith.client.checking import check

OURS = ("model", "datasets", "validation", "method", "suspend")
"""Fields of the spec that a request decides."""


class Base(BaseModel):
    """A model to start from."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    uri: str
    """Its address, as in spec.model.uri."""
    secret: str | None = None
    """Secret with the credentials of the address."""
    spec: dict[str, Any] = Field(default_factory=dict)
    """What every job of it begins with: tuner, training, resources and whatever else a FineTuneJob has."""

    @property
    def source(self) -> dict[str, Any]:
        """spec.model."""
        return {"uri": self.uri, **({"secretRef": {"name": self.secret}} if self.secret else {})}


class Catalog(RootModel[dict[str, Base]]):
    """By the name that requests use."""

    def __getitem__(self, name: str) -> Base:
        return self.root[name]

    def __contains__(self, name: str) -> bool:
        return name in self.root


def load(path: Path) -> Catalog:
    """The table of a file. Raises ValueError, and Invalid where no job could come of an entry."""
    catalog = Catalog.model_validate(yaml.safe_load(path.read_text()) or {})
    for name, base in catalog.root.items():
        if taken := sorted(base.spec.keys() & set(OURS)):
            raise ValueError(f"models.{name}.spec: {', '.join(taken)} is decided by each request: leave it out")
        sample = {"model": base.source, "datasets": [{"uri": "file:///rows.jsonl"}], "method": {"type": "SFT"}}
        body = {"apiVersion": API_VERSION, "kind": "FineTuneJob", "metadata": {"name": name}}
        check({**body, "spec": {**base.spec, **sample}})
    return catalog
