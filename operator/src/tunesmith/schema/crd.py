"""The CustomResourceDefinitions: names, printed columns and subresources around the models' schemas."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tunesmith.api.base import GROUP, MAX_NAME, VERSION, Model, rule
from tunesmith.api.finetunejob import FineTuneJob
from tunesmith.api.inferencejob import InferenceJob
from tunesmith.api.job import MUTABLE, JobSpec
from tunesmith.api.kinds import plural
from tunesmith.api.mergejob import MergeJob
from tunesmith.api.modeldeployment import ModelDeployment
from tunesmith.schema.structural import structural


@dataclass(frozen=True)
class Kind:
    """A custom kind and how kubectl shows it."""

    model: type[Model]
    short: str
    columns: tuple[tuple[str, str, str], ...]
    """(name, type, JSON path)"""
    scale: bool = False
    wide: tuple[tuple[str, str, str], ...] = field(default=())
    """Columns of `kubectl get -o wide` only."""

    @property
    def name(self) -> str:
        """The kind's name."""
        return self.model.__name__

    @property
    def plural(self) -> str:
        """The resource's name in addresses."""
        return plural(self.name)


def _reason(condition: str) -> str:
    return f'.status.conditions[?(@.type=="{condition}")].reason'


def _message(condition: str) -> str:
    return f'.status.conditions[?(@.type=="{condition}")].message'


KINDS = (
    Kind(
        FineTuneJob,
        "ftj",
        (
            ("Status", "string", _reason("Succeeded")),
            ("Progress", "string", ".status.progress.text"),
            ("Loss", "number", ".status.progress.loss"),
            ("ETA", "string", ".status.progress.eta"),
            ("Age", "date", ".metadata.creationTimestamp"),
        ),
        wide=(
            ("Method", "string", ".spec.method.type"),
            ("Tuner", "string", ".spec.tuner.type"),
            ("Nodes", "integer", ".spec.nodes"),
            ("Strategy", "string", ".status.memory.strategy"),
            ("Restarts", "integer", ".status.restarts"),
            ("Message", "string", _message("Succeeded")),
        ),
    ),
    Kind(
        MergeJob,
        "mj",
        (
            ("Status", "string", _reason("Succeeded")),
            ("Logit-Error", "number", ".status.logitError"),
            ("Age", "date", ".metadata.creationTimestamp"),
        ),
        wide=(
            ("Quantization", "string", ".spec.quantization.method"),
            ("Quantization-Error", "number", ".status.quantizationError"),
            ("Message", "string", _message("Succeeded")),
        ),
    ),
    Kind(
        InferenceJob,
        "ij",
        (
            ("Status", "string", _reason("Succeeded")),
            ("Progress", "string", ".status.progress.text"),
            ("ETA", "string", ".status.progress.eta"),
            ("Accuracy", "number", ".status.metrics.accuracy"),
            ("RougeL", "number", ".status.metrics.rougeL"),
            ("Age", "date", ".metadata.creationTimestamp"),
        ),
        wide=(
            ("Rows/s", "number", ".status.progress.rowsPerSecond"),
            ("Results", "string", ".status.artifact.uri"),
            ("Message", "string", _message("Succeeded")),
        ),
    ),
    Kind(
        ModelDeployment,
        "mdep",
        (
            ("Status", "string", _reason("Ready")),
            ("Replicas", "integer", ".status.replicas"),
            ("Ready", "integer", ".status.readyReplicas"),
            ("Adapters", "string", ".status.adaptersSummary"),
            ("Age", "date", ".metadata.creationTimestamp"),
        ),
        scale=True,
        wide=(("URL", "string", ".status.url"), ("Message", "string", _message("Ready"))),
    ),
)


def fixed(kind: str, properties: dict[str, Any]) -> dict[str, str]:
    """The CEL rule that a job's spec cannot be changed, but for what it has of MUTABLE."""
    mutable = [path for path in MUTABLE if _has(properties, path)]
    names = [name for name in properties if name not in mutable]
    for path in mutable:  # where a part of a field may change, its other parts may not
        field, _, part = path.partition(".")
        if part:
            place = names.index(field)
            names[place : place + 1] = [f"{field}.{one}" for one in properties[field]["properties"] if one != part]
    same = " && ".join(
        f"has(self.{n}) == has(oldSelf.{n}) && (!has(self.{n}) || self.{n} == oldSelf.{n})" for n in names
    )
    return rule(
        same,
        f"the spec of {'an' if kind[0] in 'AEIOU' else 'a'} {kind} cannot be changed, but for "
        f"{', '.join(mutable[:-1])} and {mutable[-1]}: "
        "create another job with the new settings",
    )


def _has(properties: dict[str, Any], path: str) -> bool:
    field, _, part = path.partition(".")
    return field in properties and (not part or part in properties[field]["properties"])


def crd(kind: Kind) -> dict[str, Any]:
    """The CustomResourceDefinition of `kind`."""
    schema = structural(kind.model)
    schema["properties"] = {
        "apiVersion": {"type": "string", "description": "Version of the API."},
        "kind": {"type": "string", "description": "Kind of the resource."},
        "metadata": {"type": "object"},
        **schema["properties"],
    }
    schema["properties"]["status"].pop("default", None)
    spec = schema["properties"]["spec"]
    spec_model = kind.model.model_fields["spec"].annotation
    if isinstance(spec_model, type) and issubclass(spec_model, JobSpec):
        spec.setdefault("x-kubernetes-validations", []).append(fixed(kind.name, spec["properties"]))
    schema["x-kubernetes-validations"] = [
        rule(
            f"size(self.metadata.name) <= {MAX_NAME}",
            f"metadata.name is too long: at most {MAX_NAME} characters, so that the names of pods fit",
        ),
        rule(
            "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            "metadata.name must be a DNS label: lower-case letters, digits and '-', a letter first",
        ),
    ]
    columns: list[dict[str, Any]] = [
        {"name": name, "type": type_, "jsonPath": path} for name, type_, path in kind.columns
    ]
    columns += [{"name": name, "type": type_, "jsonPath": path, "priority": 1} for name, type_, path in kind.wide]
    subresources: dict[str, Any] = {"status": {}}
    if kind.scale:
        subresources["scale"] = {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": [kind.short],
                "categories": ["tunesmith"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": subresources,
                    "additionalPrinterColumns": columns,
                }
            ],
        },
    }
