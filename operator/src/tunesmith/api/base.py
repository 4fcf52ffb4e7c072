"""Base classes and field types that the kinds share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

GROUP = "tunesmith.io"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

# A child's name is at most the owner's name plus 20 characters ("-adapters", "-a12" and a pod's "-0-abcde"),
# and must stay a DNS label of 63.
MAX_NAME = 43


class Model(BaseModel):
    """A part of a resource. Unknown fields are refused when a user's file is checked (`strict`), and kept
    out when the operator reads, so that a newer CRD does not stop an older operator.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
    )

    def body(self) -> dict[str, Any]:
        """The JSON form, as the API server stores it: camelCase, without absent fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def rule(expression: str, message: str, **more: str) -> dict[str, str]:
    """One CEL validation rule of a CRD (x-kubernetes-validations)."""
    return {"rule": expression, "message": message, **more}


def rules(*items: dict[str, str]) -> dict[str, Any]:
    """`json_schema_extra` that carries CEL rules."""
    return {"x-kubernetes-validations": list(items)}


def list_map(*keys: str) -> dict[str, Any]:
    """`json_schema_extra` of a list whose items are told apart by `keys`, for server-side apply."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


ATOMIC: dict[str, Any] = {"x-kubernetes-list-type": "atomic"}

DnsLabel = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]

URI_PATTERN = (
    r"^((hf|ms)://[\w.-]+/[\w.-]+(@[\w./-]+)?"
    r"|pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[^\x00-\x1f]*)?"
    r"|configmap://[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[-._a-zA-Z0-9]+"
    r"|(s3|gs)://[a-z0-9][a-z0-9._-]+/[^\x00-\x1f]+"
    r"|oci://[\w.-]+(:\d+)?/[\w./-]+(:[\w.-]+)?(@sha256:[a-f0-9]{64})?"
    r"|https://[^#\x00-\x1f]+#sha256=[a-f0-9]{64}"
    r"|file:///[^\x00-\x1f]+)$"
)
Uri = Annotated[str, Field(min_length=6, max_length=1024, pattern=URI_PATTERN)]

Quantity = Annotated[
    int | str,
    Field(
        json_schema_extra={
            "x-kubernetes-int-or-string": True,
            "pattern": (
                r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))"
                r"(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$"
            ),
        }
    ),
]


Time = Annotated[str, Field(max_length=32, json_schema_extra={"format": "date-time"})]
"""RFC 3339 in UTC."""


class NameRef(Model):
    """A reference to another object of the same namespace."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the object, in the same namespace."""


class SecretRef(Model):
    """The Secret with the credentials of a source. It is mounted into the one container that fetches."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the Secret, in the same namespace. Keys: `token` for hf:// and ms://; `accessKeyId`, `secretAccessKey`
    and optionally `endpoint`, `region` for s3:// and gs:// (HMAC keys); `authorization` (the header's value) for https://;
    `username` and `password`, or `.dockerconfigjson`, for oci://."""


class Resources(Model):
    """Compute resources of a container, as in a Pod."""

    requests: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None
    """Least amount of each resource. Where a limit is given and no request, the limit is requested."""

    limits: Annotated[dict[str, Quantity], Field(max_length=16)] | None = None
    """Most of each resource, for example `nvidia.com/gpu: 8`."""


class Source(Model):
    """Where an artefact comes from: an address, or the outcome of another job."""

    uri: Uri | None = None
    """Address: `hf://org/name@revision`, `ms://org/name@revision` (ModelScope), `pvc://claim/path`,
    `s3://bucket/path`, `gs://bucket/path`, `oci://registry/repository:tag` (or `@sha256:digest`), `https://host/path#sha256=digest`,
    `configmap://name/key` or `file:///path` (in the image)."""

    fine_tune_job_ref: NameRef | None = None
    """The artefact of a FineTuneJob of this namespace. Waited for where it is not there yet, or not finished."""

    merge_job_ref: NameRef | None = None
    """The model of a MergeJob of this namespace. Waited for where it is not there yet, or not finished."""

    secret_ref: SecretRef | None = None
    """Credentials for `uri`."""

    @property
    def reference(self) -> tuple[str, str] | None:
        """(kind, name) of the resource that this source waits for, if it is one."""
        if self.fine_tune_job_ref:
            return "FineTuneJob", self.fine_tune_job_ref.name
        if self.merge_job_ref:
            return "MergeJob", self.merge_job_ref.name
        return None


ONE_SOURCE = rule(
    "[has(self.uri), has(self.fineTuneJobRef), has(self.mergeJobRef)].filter(x, x).size() == 1",
    "exactly one of uri, fineTuneJobRef and mergeJobRef must be set",
)


class ModelSource(Source):
    """A model in Hugging Face's layout: config.json, tokenizer and *.safetensors."""

    model_config = ConfigDict(json_schema_extra=rules(ONE_SOURCE))


class AdapterSource(Source):
    """A PEFT adapter."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "[has(self.uri), has(self.fineTuneJobRef)].filter(x, x).size() == 1 && !has(self.mergeJobRef)",
                "exactly one of uri and fineTuneJobRef must be set",
            )
        )
    )


ClaimUri = Annotated[str, Field(max_length=1024, pattern=r"^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[^\x00-\x1f]*)?$")]


class Condition(Model):
    """One observation of the resource's state."""

    type: Annotated[str, Field(min_length=1, max_length=63)]
    """What is observed, for example Succeeded or Ready."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, Field(min_length=1, max_length=63)]
    """One CamelCase word: why."""
    message: Annotated[str, Field(max_length=8192)]
    """The same for people, and what to do."""
    last_transition_time: Time
    """When `status` last changed."""
    observed_generation: int
    """The generation of the spec that this speaks of."""


Conditions = Annotated[list[Condition], Field(max_length=16, json_schema_extra=list_map("type"))]


ArtifactKind = Literal["adapters", "models", "results"]


class Artifact(Model):
    """A finished artefact and where it comes from."""

    kind: ArtifactKind
    """`adapters` (a PEFT LoRA adapter), `models` (a whole model) or `results` (a model's answers)."""
    uri: Annotated[str, Field(max_length=1024)]
    """Where it lies, for example `pvc://tunesmith-store/adapters/<sha256>`."""
    digest: Annotated[str, Field(max_length=80)]
    """`sha256:` of the artefact's content."""
    base: Annotated[str, Field(max_length=1024)] | None = None
    """The address of the model that it was made from."""
