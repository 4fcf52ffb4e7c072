"""References to other resources: resolved, waited for, or impossible."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tunesmith.api.base import Artifact, Source
from tunesmith.api.finetunejob import FineTuneJob
from tunesmith.api.inferencejob import InferenceJob
from tunesmith.api.job import JobStatus
from tunesmith.api.kinds import AnyResource
from tunesmith.api.mergejob import MergeJob
from tunesmith.api.modeldeployment import ModelDeployment
from tunesmith.decide.world import Ref, World


def sources(resource: AnyResource) -> list[tuple[str, Source, str]]:
    """(field, source, wanted kind of artefact) of all that a spec takes its models and adapters from."""
    result: list[tuple[str, Source, str]] = [("spec.model", resource.spec.model, "models")]
    if isinstance(resource, FineTuneJob):
        result += [(field, source, "models") for field, source in resource.spec.method.sources()]
    if isinstance(resource, MergeJob | ModelDeployment):
        result += [(f"spec.adapters[{i}]", source, "adapters") for i, source in enumerate(resource.spec.adapters)]
    if isinstance(resource, InferenceJob) and resource.spec.adapter:
        result.append(("spec.adapter", resource.spec.adapter, "adapters"))
    if isinstance(resource, ModelDeployment):
        canaries = [(i, adapter.canary) for i, adapter in enumerate(resource.spec.adapters)]
        result += [(f"spec.adapters[{i}].canary", one, "adapters") for i, one in canaries if one]
    return result


@dataclass(frozen=True)
class References:
    """What became of the references of a spec."""

    artifacts: dict[Ref, Artifact] = field(default_factory=dict)
    """Of those that are finished."""
    waiting: dict[Ref, str] = field(default_factory=dict)
    """Of those that are not: what is waited for, for people."""
    gguf: set[Ref] = field(default_factory=set)
    """MergeJobs whose model is one file for llama.cpp."""

    @property
    def addresses(self) -> dict[Ref, str]:
        """Addresses of the finished ones."""
        return {ref: artifact.uri for ref, artifact in self.artifacts.items()}


def resolve(world: World, sources: Iterable[Source]) -> References:
    """Look up every reference among `sources`. A failed job is waited for like one that is not there: deleting
    and applying it anew is how its users mend it.
    """
    result = References()
    for ref in dict.fromkeys(source.reference for source in sources if source.reference):
        kind, name = ref
        live = world.references.get(ref)
        if live is None:
            result.waiting[ref] = f"{kind} {name} does not exist yet"
            continue
        status = JobStatus.model_validate(live.get("status") or {})
        succeeded = next((c for c in status.conditions if c.type == "Succeeded"), None)
        if succeeded and succeeded.status == "True" and status.artifact:
            result.artifacts[ref] = status.artifact
            if (live["spec"].get("quantization") or {}).get("method") == "GGUF":
                result.gguf.add(ref)
        elif succeeded and succeeded.status == "False":
            result.waiting[ref] = f"{kind} {name} failed ({succeeded.reason}): delete it and apply it again"
        else:
            result.waiting[ref] = f"{kind} {name} has not finished yet"
    return result


def succeeded_with(status: JobStatus, kind: str) -> bool:
    """Whether a job is over and made an artefact of this kind."""
    over = any(c.type == "Succeeded" and c.status == "True" for c in status.conditions)
    return over and status.artifact is not None and status.artifact.kind == kind


# By kind, the field for adapters of spec.model.
ADAPTERS = {"MergeJob": "spec.adapters", "InferenceJob": "spec.adapter", "ModelDeployment": "spec.adapters"}


def wrong_kind(references: References, source: Source, field_name: str, wanted: str, kind: str = "") -> str | None:
    """A message if the artefact of a finished reference of a resource of `kind` is an adapter where a model is wanted,
    or the reverse.
    """
    if source.reference is None or source.reference not in references.artifacts:
        return None
    artifact, (job, name) = references.artifacts[source.reference], source.reference
    if wanted == "models" and source.reference in references.gguf:
        return (
            f"{field_name}: {job} {name} made a GGUF file, which is for llama.cpp and Ollama: name a MergeJob with "
            "another quantization.method, or without one"
        )
    if artifact.kind == wanted:
        return None
    if wanted == "adapters":
        advice = "name a FineTuneJob whose tuner is LoRA or QLoRA"
    elif kind in ADAPTERS:
        advice = f"name it in {ADAPTERS[kind]}, and here the base that it was trained from, {artifact.base}"
    else:
        advice = "merge it into a model first, with a MergeJob"
    what = {"adapters": "an adapter", "models": "a whole model"}
    return f"{field_name}: {job} {name} made {what[artifact.kind]}, but {what[wanted]} is needed here: {advice}"
