"""The Job that pushes a finished artefact to one destination: the only container that sees its credentials."""

from __future__ import annotations

import hashlib

from tunesmith.api.base import Artifact
from tunesmith.api.job import JobSpec
from tunesmith.api.output import Destination
from tunesmith.children.meta import Object, Owner
from tunesmith.children.small import small_job
from tunesmith.settings import Settings
from tunesmith.training.location import locate

ROLE = "push"
# Of tunesmith.fetching: what a server refuses it refuses again.
HOPELESS = [2]
RETRIES = 6
"""The Job controller waits 10 s before the first one and twice as long before each further one: ten minutes in all."""
RESOURCES = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"cpu": "2", "memory": "1Gi"}}


def push_name(owner: Owner, uri: str) -> str:
    """Name of the Job."""
    return f"{owner.name}-push-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"


def push_job(owner: Owner, destination: Destination, artifact: Artifact, spec: JobSpec, settings: Settings) -> Object:
    """One small pod, which reads the store."""
    command = ["tunesmith.pushing", "--artifact", locate(artifact.uri).path, "--uri", destination.uri]
    return small_job(
        owner,
        push_name(owner, destination.uri),
        ROLE,
        [*command, "--public"] if destination.private is False else command,
        [artifact.uri],
        destination.secret_ref,
        spec,
        settings,
        retries=RETRIES,
        hopeless=HOPELESS,
        resources=RESOURCES,
    )
