"""Jobs of one small pod on the operator's own image, for what needs an address' credentials and no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tunesmith.api.base import SecretRef
from tunesmith.api.job import JobSpec
from tunesmith.children.meta import ROLE_LABEL, Object, Owner
from tunesmith.children.pods import Input, container, mounts, pod_spec, pull_secrets, secret_volume, secret_volumes
from tunesmith.settings import Settings
from tunesmith.training.location import SECRETS
from tunesmith.training.report import TERMINATION_LOG


def small_job(
    owner: Owner,
    name: str,
    role: str,
    command: Sequence[str],
    uris: Iterable[str],
    secret: SecretRef | None,
    spec: JobSpec,
    settings: Settings,
    *,
    retries: int,
    hopeless: Sequence[int],
    resources: Object,
    more: Object | None = None,
    **container_fields: Any,
) -> Object:
    """`python -m` with `command`, which is told where its ending goes and where the keys of `secret` lie. What `uris`
    name is mounted. Exit codes of `hopeless` end the Job at once, others after `retries`; a pod that is taken away does
    not count. `more` is of the Job's spec.
    """
    wanted = mounts([Input(uri) for uri in uris], settings)
    full = ["python", "-m", *command, "--termination-log", TERMINATION_LOG]
    volume_mounts: list[Object] = [{"name": "tmp", "mountPath": "/tmp"}, *wanted.mounts]
    if secret:
        full += ["--secret", f"{SECRETS}/{secret.name}"]
        mount = {"name": secret_volume(secret.name), "mountPath": f"{SECRETS}/{secret.name}", "readOnly": True}
        volume_mounts.append(mount)
    pod = pod_spec(
        [
            container(
                role,
                settings.operator_image,
                settings,
                command=full,
                env=[{"name": "HOME", "value": "/tmp"}, {"name": "HF_HUB_DISABLE_TELEMETRY", "value": "1"}],
                resources=resources,
                volumeMounts=volume_mounts,
                terminationMessagePolicy="FallbackToLogsOnError",
                **container_fields,
            )
        ],
        [],
        [*wanted.volumes, *secret_volumes([secret.name if secret else None])],
        settings,
        restartPolicy="Never",
        **pull_secrets(settings, spec.pod_template.image_pull_secrets),
    )
    if spec.pod_template.service_account_name:
        pod["serviceAccountName"] = spec.pod_template.service_account_name
    labels = {ROLE_LABEL: role}
    return {
        **owner.child("batch/v1", "Job", name, labels),
        "spec": {
            "backoffLimit": retries,
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": role, "operator": "In", "values": list(hopeless)},
                    },
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "template": {"metadata": {"labels": {**owner.labels, **labels}}, "spec": pod},
            **(more or {}),
        },
    }
