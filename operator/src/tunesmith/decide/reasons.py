"""Every reason that a condition or an attempt can have: what it means, and what to do. One table, which
`tunesmith explain` and docs/reasons.md show.
"""

from __future__ import annotations

from tunesmith.decide.endings import ENDINGS

# States that are no ending.
STATES = {
    "Pending": "the operator has not looked at the resource yet",
    "WaitingForReference": "a resource that it refers to is not there yet, or not finished",
    "WaitingForInput": "a claim, Secret, ConfigMap, model or dataset that it names is not there yet",
    "Inspecting": "a small pod reads the model's configuration, for the estimate of memory",
    "Queued": "Kueue has not admitted the job",
    "Admitted": "Kueue has admitted the job",
    "Starting": "pods are made, or begin",
    "Running": "all pods run",
    "Progressing": "steps are made again",
    "NoProgress": "no step was made for much longer than usual",
    "Suspending": "the pods write a checkpoint, where they do, and end",
    "Restarting": "an attempt ended and another one follows",
    "Completed": "the job has done what it was to do",
    "NameTaken": "an object has the name that a child of this resource must have, and belongs to another owner",
    "Rejected": "the API server refused an object of the operator's: a quota, an admission webhook",
    "ScaledToZero": "spec.replicas is 0; or nobody asked the gateway for a while, and the next request starts pods",
    "Watching": "a canary gets its part of the requests, and its errors are counted",
    "WaitingForRequests": "a canary has not answered enough requests for a decision",
    "BothFail": "a canary fails, but the version beside it fails as often",
    "TooManyErrors": "a canary failed more often than is allowed, and was taken back",
    "Passed": "a canary has passed its last step, and takes the place of the version before",
    "Promoted": "a canary has taken the place of the version before",
    "Updating": "new pods take over from old ones, which serve until then",
    "Ready": "all pods serve",
    "Degraded": "some of the pods do not serve",
    "AdapterFailed": "an adapter cannot be served",
    "LoadFailed": "a pod cannot load this version of an adapter",
    "RollingOut": "a new version of an adapter goes from pod to pod",
    "RolledBack": "a new version of an adapter failed, and the one before is served",
    "OlderVersion": "a pod still serves the version before",
    "WrongKind": "a job made a model where an adapter is needed, or the reverse",
    "EngineStarting": "the engine of a pod loads the model",
    "WaitingForEngine": "an adapter waits for the engine of its pod",
    "BadName": "the name of an adapter cannot be served",
    "BadSource": "the address of an adapter cannot be read",
    "BaseUnreadable": "the base's config.json cannot be read",
    "FetchFailed": "an adapter could not be fetched",
    "RankTooLarge": "an adapter's rank is above that of the engine",
    "SmokeFailed": "the first request to a new version of an adapter failed",
    "StorageFailed": "a pod could not store an adapter",
    "RestartNeeded": "an adapter needs an engine that was started for larger ranks",
    "TooManyAdapters": "more adapters are wanted than the engine keeps in memory",
    "Fits": "by its estimate, a deployment fits the memory of its device",
    "TooLarge": "by its estimate, a deployment needs more memory than its device has",
    "MemoryNotKnown": "how much memory a device has, or the model needs, is not known",
    "Sized": "the engine has room for the adapters",
    "Loading": "an adapter is on its way to the pods",
    "AdaptersReady": "every adapter is served",
    "Pushing": "what the job made is on its way to spec.output.push",
    "Pushed": "what the job made is at every address of spec.output.push",
    "PushRefused": "a server of spec.output.push does not take what the job made, and would not the next time",
    "PushFailed": "what the job made could not be pushed, and was tried for ten minutes",
}

TODO = {
    "Pending": "if it stays so: `tunesmith doctor` says whether the operator runs and watches this namespace",
    "WaitingForReference": "submit what it waits for; the message names it. It goes on by itself",
    "WaitingForInput": "make what the message names, with its field. It goes on by itself",
    "Inspecting": "nothing. spec.memory.check: Disabled goes without",
    "Queued": "see the message, and `kubectl get workloads`: the queue's quota may be too small for the job",
    "Starting": "see the message: an image that cannot be pulled and pods that fit no node are said there",
    "NoProgress": "see `tunesmith logs`; spec.stall.action: Restart would begin anew from the newest checkpoint",
    "Restarting": "nothing; status.attempts says why the attempt ended",
    "NameTaken": "delete or rename that object, or give this resource another name",
    "Rejected": "see the message; it is tried again every minute",
    "ScaledToZero": "raise spec.replicas, where that is 0",
    "BothFail": "see the engines' logs: the old version fails, too",
    "TooManyErrors": "see the engines' logs; a change of the canary, or of its conditions, is a new try",
    "Promoted": "move the canary's address to the adapter's uri",
    "Degraded": "see the message, and `tunesmith logs`",
    "AdapterFailed": "see the message; submit an adapter that fits the base, or raise spec.engine.maxLoraRank",
    "BadSource": "see the message, and correct the address",
    "BaseUnreadable": "see the message; copy the base again",
    "FetchFailed": "see the message: the address, or the Secret with its credentials",
    "RankTooLarge": "raise spec.engine.maxLoraRank, or merge the adapter (MergeJob)",
    "SmokeFailed": "see the message; the version before is served on",
    "StorageFailed": "see the message: the pod's ephemeral storage may be full",
    "RestartNeeded": "set the field that the message names; the pods restart one after the other",
    "TooManyAdapters": "set the field that the message names; the pods restart one after the other",
    "TooLarge": "see the message: more devices, a shorter engine.maxModelLen, fewer adapters",
    "MemoryNotKnown": "nothing; it is served without an estimate",
    "LoadFailed": "see the message; submit an adapter that fits the base",
    "RolledBack": "see the message; mend the adapter, and train it anew",
    "Pushing": "nothing; the artefact can be used already",
    "PushRefused": "see the message: the address, or what the Secret needs; then delete the Job that it names",
    "PushFailed": "see the message; delete the Job that it names, and it is tried again",
    "WrongKind": "refer to a job with tuner LoRA or QLoRA; a whole model is served as spec.model",
    "ConfigError": "change the field that the message names. A job's spec is fixed: delete it, and submit it anew",
    "DataError": "mend the row or the column that the message names, then `tunesmith retry`",
    "ModelError": "the message says what the model's folder lacks; copy or convert it, then `tunesmith retry`",
    "CheckFailed": "see that spec.model is the base that the adapters were trained from; spec.check.tolerance; where "
    "it names spec.quantization, a finer method, a smaller groupSize or its tolerance",
    "LossDiverged": "lower training.learningRate, or look for broken rows; `tunesmith plot` shows where",
    "DoesNotFit": "the message lists what would fit: more nodes, offload, QLoRA, a shorter maxLength",
    "DeadlineExceeded": "raise spec.activeDeadlineSeconds, and submit it anew",
    "OutOfMemory": "lower training.microBatchSize or maxLength (an InferenceJob's batchSize), use QLoRA or ZeRO3, or "
    "raise resources.limits.memory",
    "DiskFull": "make the claim larger, or lower checkpoint.keep; raise the limit of ephemeral-storage",
    "CollectiveTimeout": "see the log of the rank that is named: a slow or dead node, or a network between nodes",
    "Stalled": "see the last lines of all ranks with `tunesmith logs`",
    "Killed": "see `kubectl describe pod`; often the node's memory was used up",
    "Internal": "see `tunesmith logs`; report it with the lines there if they do not explain it",
    "PeerLost": "see the other ranks' pods; the one that left no word is the cause",
    "NodeLost": "nothing, if other nodes have room",
    "TooFewNodes": "nothing: it goes on with fewer nodes, as spec.elastic says",
    "Suspended": "`tunesmith resume` goes on from the checkpoint",
}
NOTHING = "nothing"


def meaning(reason: str) -> str | None:
    """What a reason means; None: there is no such reason."""
    return STATES.get(reason) or (ENDINGS[reason].when if reason in ENDINGS else None)


def todo(reason: str) -> str:
    """What to do about it."""
    return TODO.get(reason, NOTHING)


def follows(reason: str) -> str:
    """What the operator does after an attempt that ended so; empty for what is no ending."""
    return ENDINGS[reason].action.value if reason in ENDINGS else ""


def every() -> list[str]:
    """All reasons, sorted."""
    return sorted({*STATES, *ENDINGS})
