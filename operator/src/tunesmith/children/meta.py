"""Names, labels and owners of child objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunesmith.api.base import API_VERSION

Object = dict[str, Any]

KIND_LABEL = "tunesmith.io/kind"
NAME_LABEL = "tunesmith.io/name"
ATTEMPT_LABEL = "tunesmith.io/attempt"
ROLE_LABEL = "tunesmith.io/role"


@dataclass(frozen=True)
class Owner:
    """The custom resource that a child belongs to."""

    kind: str
    namespace: str
    name: str
    uid: str

    @classmethod
    def of(cls, resource: Mapping[str, Any]) -> Owner:
        """The owner that `resource` is."""
        meta = resource["metadata"]
        return cls(resource["kind"], meta["namespace"], meta["name"], meta["uid"])

    @property
    def labels(self) -> dict[str, str]:
        """Labels of every child. Only ours: an owner's own labels may be another tool's, such as Argo CD's."""
        return {"app.kubernetes.io/managed-by": "tunesmith", KIND_LABEL: self.kind, NAME_LABEL: self.name}

    @property
    def selector(self) -> str:
        """Selects the children."""
        return f"{KIND_LABEL}={self.kind},{NAME_LABEL}={self.name}"

    def owns(self, child: Mapping[str, Any]) -> bool:
        """Whether `child` is ours, and not another's that happens to have its name."""
        return any(ref["uid"] == self.uid for ref in child["metadata"].get("ownerReferences", ()))

    def child(self, api_version: str, kind: str, name: str, labels: Mapping[str, str] | None = None) -> Object:
        """The head of a child object, whose deletion follows the owner's."""
        return {
            "apiVersion": api_version,
            "kind": kind,
            "metadata": {
                "name": name,
                "namespace": self.namespace,
                "labels": {**self.labels, **(labels or {})},
                "ownerReferences": [
                    {
                        "apiVersion": API_VERSION,
                        "kind": self.kind,
                        "name": self.name,
                        "uid": self.uid,
                        "controller": True,
                        "blockOwnerDeletion": True,
                    }
                ],
            },
        }


WORK = {"FineTuneJob": "train", "MergeJob": "merge", "InferenceJob": "infer"}
"""What the kinds of job do, in the names of their children."""


def job_name(owner: Owner, attempt: int) -> str:
    """Name of an attempt's Job, of the ConfigMap with its plan, and of its headless Service."""
    return f"{owner.name}-{WORK[owner.kind]}-{attempt}"
