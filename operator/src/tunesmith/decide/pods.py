"""What pods say of themselves: why they wait, and how they ended."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tunesmith.api.job import Failure
from tunesmith.children.meta import Object
from tunesmith.decide.endings import DISRUPTIONS
from tunesmith.training.report import Ending

Said = TypeVar("Said", bound=BaseModel)

# Reasons of waiting containers that are ordinary and pass by themselves.
PASSING = frozenset({"ContainerCreating", "PodInitializing"})
# What a container says that did not fail of itself.
TAKEN_AWAY = frozenset({"Interrupted", "PeerLost"})
# The exit codes of a program that was ended by SIGTERM, or SIGKILLed after its grace.
SIGNALS = frozenset({143, 137})
# By which torch's NCCL watchdog ends the process, before the trainer can say anything.
WATCHDOG = re.compile(r"[Ww]atchdog caught collective operation timeout|ProcessGroupNCCL's watchdog got stuck")
# What a kubelet that comes back says of containers that it does not find any more.
VANISHED = frozenset({"Unknown", "ContainerStatusUnknown"})


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


def crashed(pods: Iterable[Object], container: str) -> bool:
    """Whether a container of one of the pods ended with an error and is started again."""
    return any(
        one["name"] == container
        and "waiting" in one.get("state", {})
        and one.get("lastState", {}).get("terminated", {}).get("exitCode", 0) != 0
        for pod in pods
        for one in _containers(pod)
    )


def ending(pod: Mapping[str, Any]) -> Ending | None:
    """What the trainer's container left in its termination message, if it ended and left one that can be read."""
    return said(Ending, [pod])


def said(model: type[Said], pods: Iterable[Mapping[str, Any]]) -> Said | None:
    """The first termination message of the pods' ended containers that is a `model`: a cluster may put others beside
    ours.
    """
    for pod in pods:
        for container in pod.get("status", {}).get("containerStatuses", ()):
            message = container.get("state", {}).get("terminated", {}).get("message")
            if message and (found := _read(model, message)):
                return found
    return None


def _read(model: type[Said], message: str) -> Said | None:
    try:
        return model.model_validate_json(message)
    except ValidationError:
        return None


@dataclass(frozen=True)
class Ended:
    """A container that ended with an error."""

    pod: Object
    container: Object
    terminated: Object
    said: Ending | None

    @property
    def taken_away(self) -> bool:
        """Whether it failed of something else: it was ended, or lost a peer."""
        if self.said is not None:
            return self.said.reason in TAKEN_AWAY
        if self.terminated.get("reason") in VANISHED:
            return True
        ended = bool(self.pod["metadata"].get("deletionTimestamp")) or disruption(self.pod) is not None
        return ended and self.terminated.get("exitCode") in SIGNALS and self.terminated.get("reason") != "OOMKilled"


def failed_containers(pods: Iterable[Object]) -> list[Ended]:
    """The containers that ended with an error, those first that failed of themselves, then by time: the clocks of
    those that died of another's failure may say that they were first.
    """
    found = [
        Ended(pod, container, terminated, _read(Ending, terminated.get("message") or ""))
        for pod in pods
        for container in _containers(pod)
        if (terminated := container.get("state", {}).get("terminated")) and terminated.get("exitCode", 0) != 0
    ]
    return sorted(found, key=lambda e: (e.taken_away, e.terminated.get("finishedAt") or "", name(e.pod)))


def disruption(pod: Mapping[str, Any]) -> Object | None:
    """The condition by which Kubernetes says that it took the pod away."""
    conditions = pod.get("status", {}).get("conditions", ())
    return next((c for c in conditions if c["type"] == "DisruptionTarget" and c["status"] == "True"), None)


def failure(pods: Sequence[Object]) -> Failure | None:
    """Why a group of pods failed, as far as it can be seen: a container that failed of itself, else a disruption,
    else a container that was ended. None: no pod says anything.
    """
    ended = failed_containers(pods)
    if ended and not ended[0].taken_away:
        return _failure(ended[0])
    for pod in pods:
        if condition := disruption(pod):
            reason = DISRUPTIONS.get(condition.get("reason", ""), "Interrupted")
            message = f"pod {name(pod)}: {condition.get('message') or condition.get('reason')}"
            return Failure(reason=reason, message=message, pod=name(pod))
    for pod in pods:
        if pod.get("status", {}).get("reason") == "Evicted":
            # Of its own making where it used more than its limit; else the node was short of something.
            message = pod["status"].get("message") or "evicted"
            own = "exceeds the limit" in message or "exceeds the total limit" in message
            return Failure(
                reason="DiskFull" if own else "Evicted", message=f"pod {name(pod)}: {message}", pod=name(pod)
            )
    return _failure(ended[0]) if ended else None


def _failure(ended: Ended) -> Failure:
    pod, container, terminated, said = ended.pod, ended.container, ended.terminated, ended.said
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
    if killed:
        reason = "OutOfMemory"
        message = (
            f"container {container['name']} used more memory than its limit: raise spec.resources.limits.memory, "
            "or lower training.microBatchSize or maxLength (of an InferenceJob batchSize)"
        )
    elif watchdog := next((line for line in lines if WATCHDOG.search(line)), None):
        reason = "CollectiveTimeout"
        message = f"container {container['name']}: the processes waited for each other in vain: {watchdog}"
    else:
        signal = {143: "Interrupted", 137: "Interrupted" if ended.taken_away else "Killed"}
        reason = signal.get(terminated["exitCode"], "Internal")
        if terminated.get("reason") in VANISHED:
            reason = "NodeLost"
        last = lines[-1] if lines else str(terminated.get("reason", "Error"))
        message = f"container {container['name']} ended with exit code {terminated['exitCode']}: {last}"
    return Failure(
        reason=reason,
        message=message,
        pod=name(pod),
        rank=rank(pod),
        exit_code=terminated["exitCode"],
        log=lines[-20:],
    )


def rank(pod: Mapping[str, Any]) -> int | None:
    """The pod's index among those of its Job: the rank of its first process where there is one in each."""
    index = pod["metadata"].get("annotations", {}).get("batch.kubernetes.io/job-completion-index")
    return None if index is None else int(index)


def is_over(pod: Mapping[str, Any]) -> bool:
    """Whether no container of the pod will ever run again."""
    return pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}


def scheduled(pod: Mapping[str, Any]) -> bool:
    """Whether the pod has a node."""
    return bool(pod.get("spec", {}).get("nodeName"))


def running(pod: Mapping[str, Any]) -> bool:
    """Whether the pod runs and is not on its way out."""
    return pod.get("status", {}).get("phase") == "Running" and not pod["metadata"].get("deletionTimestamp")


def ready(pod: Mapping[str, Any]) -> bool:
    """Whether the pod takes requests."""
    conditions = pod.get("status", {}).get("conditions", ())
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def name(pod: Mapping[str, Any]) -> str:
    """The pod's name."""
    return str(pod["metadata"]["name"])


def tail(text: str | None, limit: int = 600) -> str:
    """The end of a text, on one line."""
    return " ".join((text or "").split())[-limit:]


def _containers(pod: Mapping[str, Any]) -> Iterator[Object]:
    status = pod.get("status", {})
    yield from status.get("initContainerStatuses", ())
    yield from status.get("containerStatuses", ())
