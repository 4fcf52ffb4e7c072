"""The kinds with their head: apiVersion, kind and metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import ValidationError

from tunesmith.api import finetunejob, inferencejob, mergejob, modeldeployment
from tunesmith.api.base import API_VERSION, Condition, Model
from tunesmith.api.job import JobStatus
from tunesmith.api.modeldeployment import ModelDeploymentStatus
from tunesmith.client import display
from tunesmith.client.checking import check, spelled, told
from tunesmith.client.errors import Unreadable


class Metadata(Model):
    """Who a resource is."""

    name: str
    namespace: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    uid: str | None = None
    generation: int | None = None
    resource_version: str | None = None
    creation_timestamp: str | None = None


WRITTEN = ("name", "namespace", "labels", "annotations")
"""Fields of the metadata that are the user's."""


class Resource(Model):
    """What the kinds have in common."""

    main: ClassVar[str] = "Succeeded"
    """The condition that says how it ended."""

    api_version: Literal["tunesmith.io/v1alpha1"] = API_VERSION  # type: ignore[assignment]
    kind: str
    metadata: Metadata

    @classmethod
    def of(cls, name: str, namespace: str | None = None, **spec: Any) -> Self:
        """The resource of this name; `spec` holds its fields. Raises Invalid for what cannot be right."""
        meta = {"name": name, **({"namespace": namespace} if namespace else {})}
        return cls.read(
            {
                "apiVersion": API_VERSION,
                "kind": cls.kind_name(),
                "metadata": meta,
                "spec": spelled(cls.kind_name(), spec),
            }
        )

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        """From a manifest. Raises Invalid for what cannot be right."""
        check(body)
        return cls.model_validate(body)

    @classmethod
    def stored(cls, body: Mapping[str, Any]) -> Self:
        """From the API server, whose CRD may be of another version. Raises Unreadable."""
        try:
            return cls.model_validate({"kind": cls.kind_name(), **body})
        except ValidationError as error:
            raise Unreadable.fields(f"{cls.kind_name()} {body['metadata']['name']}", told(error)) from error

    @classmethod
    def kind_name(cls) -> str:
        """Its kind."""
        return str(cls.model_fields["kind"].default)

    @property
    def name(self) -> str:
        """Its name."""
        return self.metadata.name

    @property
    def conditions(self) -> list[Condition]:
        """What was observed of it."""
        status: JobStatus | ModelDeploymentStatus = self.status  # type: ignore[attr-defined]
        return status.conditions

    def condition(self, type_: str | None = None) -> Condition | None:
        """A condition, by default the one that says how it ended; None: the operator has not seen this spec yet."""
        found = next((c for c in self.conditions if c.type == (type_ or self.main)), None)
        if found and self.metadata.generation and found.observed_generation < self.metadata.generation:
            ended = self.main == "Succeeded" and found.status != "Unknown"
            return found if ended else None
        return found

    @property
    def reason(self) -> str:
        """The word that `kubectl get` shows."""
        found = self.condition()
        return found.reason if found else "Pending"

    @property
    def message(self) -> str:
        """The same for people."""
        found = self.condition()
        return found.message if found else "the operator has not looked at it yet"

    @property
    def done(self) -> bool:
        """Whether it is what was wanted: Succeeded, or Ready."""
        found = self.condition()
        return bool(found and found.status == "True")

    @property
    def failed(self) -> bool:
        """Whether it will never be."""
        found = self.condition()
        return bool(found and found.type == "Succeeded" and found.status == "False")

    @property
    def over(self) -> bool:
        """Whether nothing more will happen without a change."""
        return self.done or self.failed

    def manifest(self) -> dict[str, Any]:
        """What to apply: the fields that were set, without the status and what the API server added."""
        full = self.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
        meta = {key: value for key, value in full["metadata"].items() if key in WRITTEN and value}
        return {"apiVersion": API_VERSION, "kind": self.kind, "metadata": meta, "spec": full["spec"]}

    def _repr_html_(self) -> str:
        return display.resource(self)


class FineTuneJob(Resource, finetunejob.FineTuneJob):
    """A training run."""

    kind: Literal["FineTuneJob"] = "FineTuneJob"


class MergeJob(Resource, mergejob.MergeJob):
    """Merges adapters into their base."""

    kind: Literal["MergeJob"] = "MergeJob"


class InferenceJob(Resource, inferencejob.InferenceJob):
    """Asks a model the rows of datasets."""

    kind: Literal["InferenceJob"] = "InferenceJob"


class ModelDeployment(Resource, modeldeployment.ModelDeployment):
    """Serves a model and its adapters."""

    main: ClassVar[str] = "Ready"
    kind: Literal["ModelDeployment"] = "ModelDeployment"


AnyJob = FineTuneJob | MergeJob | InferenceJob
AnyResource = AnyJob | ModelDeployment
RESOURCES: dict[str, type[AnyResource]] = {
    "FineTuneJob": FineTuneJob,
    "MergeJob": MergeJob,
    "InferenceJob": InferenceJob,
    "ModelDeployment": ModelDeployment,
}


def read(body: Mapping[str, Any]) -> AnyResource:
    """A manifest as its model. Raises Invalid for what cannot be right."""
    check(body)
    return RESOURCES[body["kind"]].model_validate(body)
