"""The custom kinds: the one list of them."""

from __future__ import annotations

from tunesmith.api.finetunejob import FineTuneJob
from tunesmith.api.inferencejob import InferenceJob
from tunesmith.api.mergejob import MergeJob
from tunesmith.api.modeldeployment import ModelDeployment

AnyJob = FineTuneJob | MergeJob | InferenceJob
AnyResource = AnyJob | ModelDeployment

JOBS: dict[str, type[AnyJob]] = {"FineTuneJob": FineTuneJob, "MergeJob": MergeJob, "InferenceJob": InferenceJob}
MODELS: dict[str, type[AnyResource]] = {**JOBS, "ModelDeployment": ModelDeployment}


def plural(kind: str) -> str:
    """The name of a kind's resources in addresses."""
    return f"{kind.lower()}s"
