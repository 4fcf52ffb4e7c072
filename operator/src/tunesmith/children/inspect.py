"""The Job that looks at the model's configuration and waits for inputs, before anything expensive is asked for."""

from __future__ import annotations

from tunesmith.api.finetunejob import FineTuneJobSpec
from tunesmith.children.meta import ROLE_LABEL, Object, Owner
from tunesmith.children.pods import (
    Input,
    container,
    mounts,
    pod_spec,
    pull_secrets,
    secret_volume,
    secret_volumes,
)
from tunesmith.settings import Settings
from tunesmith.training.location import SECRETS, locate
from tunesmith.training.plan import TrainPlan
from tunesmith.training.report import PORT, TERMINATION_LOG

ROLE = "inspect"
# The trainer's exit codes for errors that come again: they end the Job at once.
HOPELESS = [64, 65, 66]
RESOURCES = {"requests": {"cpu": "50m", "memory": "96Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}}


def inspect_name(owner: Owner) -> str:
    """Name of the Job."""
    return f"{owner.name}-inspect"


def inspect_job(owner: Owner, spec: FineTuneJobSpec, plan: TrainPlan, settings: Settings) -> Object:
    """One small pod. It sees the model's credentials, if there are any, since it reads the model's configuration."""
    secret = spec.model.secret_ref.name if spec.model.secret_ref and locate(plan.model.uri).fetch else None
    there = [place.uri for place in (plan.model, *plan.all_datasets) if not locate(place.uri).fetch]
    wanted = mounts([Input(uri) for uri in there], settings)
    command = ["python", "-m", "tunesmith.inspecting", "--model", plan.model.uri, "--termination-log", TERMINATION_LOG]
    for dataset in plan.all_datasets:
        command += ["--input", dataset.uri]
    volume_mounts: list[Object] = [{"name": "tmp", "mountPath": "/tmp"}, *wanted.mounts]
    if secret:
        command += ["--secret", f"{SECRETS}/{secret}"]
        volume_mounts.append({"name": secret_volume(secret), "mountPath": f"{SECRETS}/{secret}", "readOnly": True})
    pod = pod_spec(
        [
            container(
                "inspect",
                settings.operator_image,
                settings,
                command=command,
                env=[{"name": "HOME", "value": "/tmp"}, {"name": "HF_HUB_DISABLE_TELEMETRY", "value": "1"}],
                ports=[{"name": "progress", "containerPort": PORT}],
                resources=RESOURCES,
                volumeMounts=volume_mounts,
                terminationMessagePolicy="FallbackToLogsOnError",
            )
        ],
        [],
        [*wanted.volumes, *secret_volumes([secret])],
        restartPolicy="Never",
        **pull_secrets(settings, spec.pod_template.image_pull_secrets),
    )
    if spec.pod_template.service_account_name:
        pod["serviceAccountName"] = spec.pod_template.service_account_name
    labels = {ROLE_LABEL: ROLE}
    return {
        **owner.child("batch/v1", "Job", inspect_name(owner), labels),
        "spec": {
            "backoffLimit": 3,
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": "inspect", "operator": "In", "values": HOPELESS},
                    },
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "ttlSecondsAfterFinished": 3600,
            "template": {"metadata": {"labels": {**owner.labels, **labels}}, "spec": pod},
        },
    }
