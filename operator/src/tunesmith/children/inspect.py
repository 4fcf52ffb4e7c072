"""The Job that looks at the model's configuration and waits for inputs, before anything expensive is asked for."""

from __future__ import annotations

from tunesmith.api.finetunejob import FineTuneJobSpec
from tunesmith.children.meta import Object, Owner
from tunesmith.children.small import small_job
from tunesmith.settings import Settings
from tunesmith.training.location import locate
from tunesmith.training.plan import TrainPlan
from tunesmith.training.report import PORT

ROLE = "inspect"
# The trainer's exit codes for errors that come again: they end the Job at once.
HOPELESS = [64, 65, 66]
RESOURCES = {"requests": {"cpu": "50m", "memory": "96Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}}


def inspect_name(owner: Owner) -> str:
    """Name of the Job."""
    return f"{owner.name}-inspect"


def inspect_job(owner: Owner, spec: FineTuneJobSpec, plan: TrainPlan, settings: Settings) -> Object:
    """One small pod. It sees the model's credentials, if there are any, since it reads the model's configuration."""
    command = ["tunesmith.inspecting", "--model", plan.model.uri]
    for dataset in plan.all_datasets:
        command += ["--input", dataset.uri]
    return small_job(
        owner,
        inspect_name(owner),
        ROLE,
        command,
        [place.uri for place in (plan.model, *plan.all_datasets) if not locate(place.uri).fetch],
        spec.model.secret_ref if locate(plan.model.uri).fetch else None,
        spec,
        settings,
        retries=3,
        hopeless=HOPELESS,
        resources=RESOURCES,
        more={"ttlSecondsAfterFinished": 3600},
        ports=[{"name": "progress", "containerPort": PORT}],
    )
