"""What all our pods share: the restricted security context, and the volumes that inputs need."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from tunesmith.children.meta import Object
from tunesmith.settings import Settings
from tunesmith.training.location import CLAIMS, CONFIG_MAPS, FETCHED, SECRETS, Location, locate
from tunesmith.training.report import TERMINATION_LOG

USER = 65532

# https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
CONTAINER_SECURITY: Object = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
ENVIRONMENT = [
    {"name": "HOME", "value": "/tmp"},
    # Threads that wait sleep. By default they spin, and where several pods share the cores they take from each other
    # what they wait for: three trainings on two cores were three times as slow.
    {"name": "OMP_WAIT_POLICY", "value": "PASSIVE"},
    {"name": "HF_HUB_OFFLINE", "value": "1"},
    {"name": "HF_HUB_DISABLE_TELEMETRY", "value": "1"},
]


@dataclass(frozen=True)
class Input:
    """Something that a pod reads or writes, by its address."""

    uri: str
    secret: str | None = None
    """Name of the Secret with the credentials to fetch it."""
    kind: Literal["model", "dataset"] = "model"
    """What it is, for hubs that keep the two apart."""
    writable: bool = False
    at: Location | None = None
    """Where it is in the pod, if not where its address says."""
    keep_days: int = 0
    """How long others that were fetched to the same claim are kept unused."""

    @property
    def place(self) -> Location:
        """Where it is in the pod."""
        return self.at or locate(self.uri)


@dataclass(frozen=True)
class Mounts:
    """What a pod needs for its inputs to be at their paths."""

    volumes: list[Object] = field(default_factory=list)
    mounts: list[Object] = field(default_factory=list)
    fetchers: list[Object] = field(default_factory=list)
    """Init containers: the only ones that see credentials."""


def mounts(inputs: Iterable[Input], settings: Settings) -> Mounts:
    """Volumes, mounts and fetchers for `inputs`, each claim and ConfigMap once."""
    inputs = list(inputs)
    places = [(one, one.place) for one in inputs]
    claims = {place.claim: False for _, place in places if place.claim}
    for one, place in places:
        if place.claim and one.writable:
            claims[place.claim] = True
    result = Mounts()
    for claim, writable in sorted(claims.items()):
        name = claim_volume(claim)
        result.volumes.append({"name": name, "persistentVolumeClaim": {"claimName": claim}})
        mount: Object = {"name": name, "mountPath": f"{CLAIMS}/{claim}"}
        if not writable:
            mount["readOnly"] = True
        result.mounts.append(mount)
    for config in sorted({place.config_map for _, place in places if place.config_map}):
        name = volume_name("configmap", config)
        result.volumes.append({"name": name, "configMap": {"name": config}})
        result.mounts.append({"name": name, "mountPath": f"{CONFIG_MAPS}/{config}", "readOnly": True})
    for place in {place.uri: place for _, place in places if place.image}.values():
        image = {"reference": place.uri.removeprefix("oci://"), "pullPolicy": settings.image_pull_policy}
        result.volumes.append({"name": "model-image", "image": image})
        result.mounts.append({"name": "model-image", "mountPath": place.path, "readOnly": True})
    fetched = list({place.uri: (one, place) for one, place in places if place.fetch}.values())
    if any(not place.claim for _, place in fetched):
        result.volumes.append({"name": "fetched", "emptyDir": {}})
        result.mounts.append({"name": "fetched", "mountPath": FETCHED, "readOnly": True})
    for number, (one, place) in enumerate(fetched):
        command = ["python", "-m", "tunesmith.fetching", "--uri", place.uri, "--to", place.path, "--kind", one.kind]
        command += ["--termination-log", TERMINATION_LOG]
        if place.claim:
            command += ["--shared", "--keep-days", str(one.keep_days)]
            onto = {"name": claim_volume(place.claim), "mountPath": f"{CLAIMS}/{place.claim}"}
        else:
            onto = {"name": "fetched", "mountPath": FETCHED}
        own: list[Object] = [onto, {"name": "tmp", "mountPath": "/tmp"}]
        if one.secret:
            folder = f"{SECRETS}/{one.secret}"
            command += ["--secret", folder]
            own.append({"name": secret_volume(one.secret), "mountPath": folder, "readOnly": True})
        result.fetchers.append(
            container(
                f"fetch-{number}",
                settings.operator_image,
                settings,
                command=command,
                env=[{"name": "HOME", "value": "/tmp"}, {"name": "HF_HUB_DISABLE_TELEMETRY", "value": "1"}],
                volumeMounts=own,
                terminationMessagePolicy="FallbackToLogsOnError",
            )
        )
    result.volumes.extend(secret_volumes(one.secret for one, _ in fetched))
    return result


def volume_name(what: str, name: str) -> str:
    """Name of the volume of an object: a DNS label, and never another's."""
    plain = f"{what}-{name}"
    if len(plain) <= 63 and "." not in plain:
        return plain
    return f"{plain[:54].replace('.', '-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def claim_volume(claim: str) -> str:
    """Name of the volume of a claim."""
    return volume_name("claim", claim)


def secret_volume(secret: str) -> str:
    """Name of the volume of a Secret."""
    return volume_name("secret", secret)


def secret_volumes(secrets: Iterable[str | None]) -> list[Object]:
    """One volume per Secret."""
    return [
        {"name": secret_volume(name), "secret": {"secretName": name, "defaultMode": 0o440}}
        for name in sorted({name for name in secrets if name})
    ]


def container(name: str, image: str, settings: Settings, **fields: object) -> Object:
    """A container under the restricted Pod Security Standard."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": settings.image_pull_policy,
        "securityContext": CONTAINER_SECURITY,
        **{key: value for key, value in fields.items() if value is not None and value != {}},
    }


def pull_secrets(settings: Settings, own: Iterable[str] = ()) -> Object:
    """The field of a pod with the registry credentials of the installation and its own; none where there are none."""
    names = dict.fromkeys([*settings.pull_secrets, *own])
    return {"imagePullSecrets": [{"name": name} for name in names]} if names else {}


def pod_spec(
    containers: list[Object], init: list[Object], volumes: list[Object], settings: Settings, **fields: object
) -> Object:
    """A pod under the restricted Pod Security Standard, without a token for the API server."""
    spec: Object = {
        "automountServiceAccountToken": False,
        # A Service named vllm would set VLLM_PORT=tcp://…, which stops vLLM.
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            **({"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER} if settings.fixed_user else {}),
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": containers,
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
            *volumes,
        ],
        **fields,
    }
    if init:
        spec["initContainers"] = init
    return spec


SCRATCH = [{"name": "tmp", "mountPath": "/tmp"}, {"name": "shm", "mountPath": "/dev/shm"}]
