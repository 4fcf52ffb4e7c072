"""How attempts end, and what follows from it: one table, which docs/reliability.md shows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Action(Enum):
    """What follows an attempt that did not end well."""

    FAIL = "the job fails: it would end the same way again"
    RETRY = "another attempt, counted against restartPolicy.maxRestarts, after the backoff"
    RETRY_FREE = "another attempt, not counted"
    RETRY_SMALLER = (
        "another attempt with half the micro-batch and the same global batch (an InferenceJob: half the batchSize), "
        "at most twice"
    )


@dataclass(frozen=True)
class Ending:
    """A class of endings."""

    action: Action
    when: str


ENDINGS = {
    "ConfigError": Ending(Action.FAIL, "the spec asks for what cannot be done"),
    "DataError": Ending(Action.FAIL, "a dataset is missing, empty, or has a bad row"),
    "ModelError": Ending(Action.FAIL, "a model or adapter is missing, or does not fit"),
    "CheckFailed": Ending(Action.FAIL, "the merged model differs from base and adapters, or the quantised one from it"),
    "LossDiverged": Ending(Action.FAIL, "the loss is not a number"),
    "DoesNotFit": Ending(Action.FAIL, "by its estimate the job needs more memory than a device has"),
    "DeadlineExceeded": Ending(Action.FAIL, "spec.activeDeadlineSeconds is over"),
    "OutOfMemory": Ending(Action.RETRY_SMALLER, "the accelerator's memory or the container's limit did not suffice"),
    "DiskFull": Ending(Action.RETRY, "no space is left, or the pod used more ephemeral storage than its limit"),
    "CollectiveTimeout": Ending(Action.RETRY, "the processes waited for each other in vain"),
    "Stalled": Ending(Action.RETRY, "no step was made for too long, and spec.stall.action is Restart"),
    "Killed": Ending(Action.RETRY, "a process was killed, and nobody says why"),
    "Internal": Ending(Action.RETRY, "anything else"),
    "Interrupted": Ending(Action.RETRY_FREE, "SIGTERM, or the pods or their Job were deleted"),
    "PeerLost": Ending(Action.RETRY_FREE, "another process of the group went away and left no word"),
    "Preempted": Ending(Action.RETRY_FREE, "the scheduler gave the node to pods of higher priority"),
    "Drained": Ending(Action.RETRY_FREE, "the node was drained (eviction API)"),
    "Evicted": Ending(Action.RETRY_FREE, "the kubelet ended the pod: node pressure, or the node shut down"),
    "NodeLost": Ending(Action.RETRY_FREE, "the node does not answer any more, or is gone"),
    "Superseded": Ending(Action.RETRY_FREE, "a process of an earlier attempt was still there"),
    "TooFewNodes": Ending(Action.RETRY_FREE, "spec.elastic: not all nodes could be had; goes on with fewer"),
    "Suspended": Ending(Action.RETRY_FREE, "spec.suspend"),
}

# https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions
DISRUPTIONS = {
    "PreemptionByScheduler": "Preempted",
    "EvictionByEvictionAPI": "Drained",
    "TerminationByKubelet": "Evicted",
    "DeletionByTaintManager": "NodeLost",
    "DeletionByPodGC": "NodeLost",
}


def action(reason: str) -> Action:
    """What follows an attempt that ended for `reason`."""
    return ENDINGS.get(reason, ENDINGS["Internal"]).action
