"""What pods say of themselves: why they wait, and how they ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from tunesmith.api.job import Failure
from tunesmith.children.meta import Object
from tunesmith.training.report import Ending

# Reasons of waiting containers that are ordinary and pass by themselves.
PASSING = frozenset({"ContainerCreating", "PodInitializing"})
# What a container says that did not fail of itself.
TAKEN_AWAY = frozenset({"Interrupted", "PeerLost"})
# The exit code of a program that was ended by SIGTERM, or SIGKILLed after its grace.
SIGNALS = frozenset({143, 137})


def problem(pods: Iterable[Object]) -> str | None:
    """Why the first pod that is held up is held up: scheduling, image, or a container that keeps ending."""
    for pod in pods:
        status = pod.get("status", {})
        for condition in status.get("conditions", ()):
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                return f"pod {name(pod)} cannot be scheduled: {condition.get('message', condition.get('reason', ''))}"
        for container in _containers(pod):
            waiting = container.get("state", {}).get("waiting")
            if waiting and waiting.get("reason") not in PASSING:
                last = container.get("lastState", {}).get("terminated") or {}
                why = waiting.get("message") or ""
                if last:
                    why += f" (exit code {last.get('exitCode')}: {tail(last.get('message') or last.get('reason'))})"
                return f"pod {name(pod)}, container {container['name']}: {waiting.get('reason')}: {why}"
    return None


def ending(pod: Mapping[str, Any]) -> Ending | None:
    """What the trainer's container left in its termination message, if it ended and left one that can be read."""
    for container in pod.get("status", {}).get("containerStatuses", ()):
        if terminated := container.get("state", {}).get("terminated"):
            return _read(terminated)
    return None


def _read(terminated: Mapping[str, Any]) -> Ending | None:
    try:
        return Ending.model_validate_json(terminated.get("message") or "")
    except ValidationError:
        return None


def first_failed(pods: Iterable[Object]) -> tuple[Object, Object, Object] | None:
    """(pod, container's status, its termination) of the container that failed first of itself. Those that were ended
    or lost a peer failed of another, though their clocks may say that they were first.
    """
    failed = [
        (pod, container, terminated)
        for pod in pods
        for container in _containers(pod)
        if (terminated := container.get("state", {}).get("terminated")) and terminated.get("exitCode", 0) != 0
    ]

    def order(item: tuple[Object, Object, Object]) -> tuple[bool, str, str]:
        said = _read(item[2])
        return said is not None and said.reason in TAKEN_AWAY, item[2].get("finishedAt") or "", name(item[0])

    return min(failed, key=order, default=None)


def failure(pods: Iterable[Object], reason: str, message: str) -> Failure:
    """Why a group of pods failed. `reason` and `message` are for when no container is left to say more."""
    first = first_failed(pods)
    if first is None:
        return Failure(reason=reason, message=message)
    pod, container, terminated = first
    said = _read(terminated)
    if said is not None and said.reason != "Completed":
        return Failure(
            reason=said.reason,
            message=said.message[:4096],
            pod=name(pod),
            rank=said.rank,
            exit_code=terminated["exitCode"],
            log=[line[:512] for line in said.log[-20:]],
        )
    killed = terminated.get("reason") == "OOMKilled"
    lines = [line[:512] for line in (terminated.get("message") or "").splitlines() if line.strip()]
    return Failure(
        reason="OutOfMemory" if killed else ("Interrupted" if terminated["exitCode"] in SIGNALS else "Internal"),
        message=(
            f"container {container['name']} used more memory than its limit: raise spec.resources.limits.memory, "
            "or lower training.microBatchSize or maxLength"
            if killed
            else f"container {container['name']} ended with exit code {terminated['exitCode']}: "
            + (lines[-1] if lines else str(terminated.get("reason", "Error")))
        ),
        pod=name(pod),
        exit_code=terminated["exitCode"],
        log=lines[-20:],
    )


def running(pod: Mapping[str, Any]) -> bool:
    """Whether the pod runs and is not on its way out."""
    return pod.get("status", {}).get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp")


def name(pod: Mapping[str, Any]) -> str:
    """The pod's name."""
    return str(pod["metadata"]["name"])


def tail(text: str | None, limit: int = 300) -> str:
    """The end of a text, on one line."""
    return " ".join((text or "").split())[-limit:]


def _containers(pod: Mapping[str, Any]) -> Iterator[Object]:
    status = pod.get("status", {})
    yield from status.get("initContainerStatuses", ())
    yield from status.get("containerStatuses", ())
