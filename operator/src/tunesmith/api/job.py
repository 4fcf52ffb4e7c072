"""What the kinds of job share: how a job is run, restarted, queued and tidied up, and what it reports."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from tunesmith.api.base import ATOMIC, Artifact, Conditions, Model, Time, list_map, rule, rules
from tunesmith.api.output import MOST_DESTINATIONS, Pushed

Name = Annotated[str, Field(min_length=1, max_length=253)]
LabelValue = Annotated[str, Field(max_length=63)]
# Parts of a Pod that are passed on as they are: the API server checks them when the Job is made.
AsInPod = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]

# What the operator and torchrun set; another value would break the rendezvous.
RESERVED_ENVIRONMENT = r"^(RANK|LOCAL_RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT|PET_.*|TUNESMITH_.*)$"


class RestartPolicy(Model):
    """What happens after an attempt that did not end well. Pods that were taken away (preemption, eviction, a lost
    or drained node) are no failure: their attempts are not counted. Errors of the configuration, the data or the
    model are never tried again.
    """

    max_restarts: Annotated[int, Field(ge=0, le=1000)] = 3
    """Restarts after failures. When they are used up, the job has failed."""
    backoff_seconds: Annotated[int, Field(ge=0, le=86_400)] = 10
    """Wait before the first restart; it doubles with each further one, up to 10 minutes."""


class EnvVar(Model):
    """A variable of the trainer's environment."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                f"!self.name.matches('{RESERVED_ENVIRONMENT}')",
                "this variable is set by tunesmith: it cannot be overridden",
            ),
            rule("!(has(self.value) && has(self.valueFrom))", "at most one of value and valueFrom must be set"),
        )
    )
    name: Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$")]
    """Its name."""
    value: Annotated[str, Field(max_length=32_768)] | None = None
    """Its value."""
    value_from: AsInPod | None = None
    """Where its value comes from, as in a Pod: a key of a Secret or of a ConfigMap."""


class Toleration(Model):
    """A taint that the pods tolerate, as in a Pod."""

    key: Annotated[str, Field(max_length=316)] | None = None
    """Key of the taint; absent with operator Exists: every taint."""
    operator: Literal["Equal", "Exists"] | None = None
    """How key and value are compared. Default: Equal."""
    value: LabelValue | None = None
    """Value of the taint."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; absent: every effect."""
    toleration_seconds: int | None = None
    """How long a NoExecute taint is tolerated. Absent: for ever."""


class PodTemplate(Model):
    """What the pods have beyond what tunesmith gives them. Pods stay under the restricted Pod Security Standard."""

    image: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    """Image of the trainer. Default: the operator's."""
    image_pull_secrets: Annotated[list[Name], Field(max_length=16, json_schema_extra=ATOMIC)] = []
    """Names of Secrets with registry credentials."""
    service_account_name: Name | None = None
    """Service account of the pods. They get no token for the API server. Default: `default`."""
    labels: Annotated[dict[str, LabelValue], Field(max_length=32)] | None = None
    """More labels of the pods."""
    annotations: Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=32)] | None = None
    """More annotations of the pods."""
    env: Annotated[list[EnvVar], Field(max_length=64, json_schema_extra=list_map("name"))] = []
    """More environment variables of the trainer."""
    volumes: Annotated[list[AsInPod], Field(max_length=32, json_schema_extra=ATOMIC)] = []
    """More volumes, as in a Pod."""
    volume_mounts: Annotated[list[AsInPod], Field(max_length=32, json_schema_extra=ATOMIC)] = []
    """Where the trainer sees them, as in a Pod."""
    node_selector: Annotated[dict[str, LabelValue], Field(max_length=32)] | None = None
    """Labels that a node must have."""
    tolerations: Annotated[list[Toleration], Field(max_length=32, json_schema_extra=ATOMIC)] = []
    """Taints that the pods tolerate."""
    affinity: AsInPod | None = None
    """Affinity, as in a Pod."""
    topology_spread_constraints: Annotated[list[AsInPod], Field(max_length=16, json_schema_extra=ATOMIC)] = []
    """How the pods are spread, as in a Pod."""
    priority_class_name: Name | None = None
    """Priority of the pods in the scheduler."""
    scheduler_name: Name | None = None
    """Scheduler of the pods."""
    runtime_class_name: Name | None = None
    """Container runtime of the pods."""


class JobSpec(Model):
    """How a job runs, whatever it does."""

    suspend: bool = False
    """Checkpoint, end the pods and free what they hold. When it is false again, the job goes on from the checkpoint.
    Can be changed at any time."""
    active_deadline_seconds: Annotated[int, Field(ge=1, le=31_536_000)] | None = None
    """The job fails when it is not over this long after startTime, which a resume sets anew (as for a Job)."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31_536_000)] | None = None
    """Delete this resource so long after it ended, with its pods and its plan. What it made stays in the store. Can
    be changed at any time. Default: never."""
    clean_pod_policy: Literal["Running", "All"] = "Running"
    """Which pods are deleted when the job ends: those that still run, or all. Ended pods hold nothing but their
    logs."""
    restart_policy: RestartPolicy = RestartPolicy()
    """What happens after an attempt that did not end well."""
    pod_template: PodTemplate = PodTemplate()
    """What the pods have beyond what tunesmith gives them."""
    queue_name: Annotated[str, Field(min_length=1, max_length=63)] | None = None
    """Kueue's LocalQueue, in the same namespace. The pods start when Kueue admits them."""
    priority: Name | None = None
    """Kueue's WorkloadPriorityClass: who is admitted first, and who is preempted."""


# Fields of the spec that may change; all others are fixed when the job is made.
MUTABLE = ("suspend", "ttlSecondsAfterFinished", "output.push")


class Failure(Model):
    """Why an attempt failed: what the first failing container said of itself."""

    reason: Annotated[str, Field(max_length=63)]
    """The class of the ending, see docs/reliability.md."""
    message: Annotated[str, Field(max_length=4096)]
    """The last line of the error and what to do."""
    pod: Annotated[str, Field(max_length=253)] | None = None
    """The pod that failed first."""
    rank: int | None = None
    """The failing process's rank among all processes."""
    exit_code: int | None = None
    """The container's exit code."""
    log: Annotated[list[Annotated[str, Field(max_length=512)]], Field(max_length=20, json_schema_extra=ATOMIC)] = []
    """The last lines that it logged."""


class Attempt(Model):
    """One run of the whole group of pods."""

    number: int
    """Counted from 1; part of the pods' names."""
    nodes: int
    """Pods that it was made for."""
    scheduled_nodes: int | None = None
    """Pods that got a node, where those were too few."""
    micro_batch_size: int | None = None
    """Rows that one process held at a time: training.microBatchSize, or batchSize of an InferenceJob."""
    start_time: Time | None = None
    """When all of its pods ran."""
    end_time: Time | None = None
    """When its last pod was gone."""
    resumed_step: int | None = None
    """Step of the checkpoint that it began from; 0: from the start. An InferenceJob counts rows that are answered."""
    last_step: int | None = None
    """The last step that it was seen to make."""
    checkpoint_step: int | None = None
    """Step of its newest checkpoint."""
    reason: Annotated[str, Field(max_length=63)] | None = None
    """How it ended: Completed, or the class of the failure."""
    message: Annotated[str, Field(max_length=1024)] | None = None
    """The last line of the error."""
    pod: Annotated[str, Field(max_length=253)] | None = None
    """The pod that failed first."""
    rank: int | None = None
    """The failing process's rank."""
    exit_code: int | None = None
    """The failing container's exit code."""
    counted: bool = False
    """Whether it counts against restartPolicy.maxRestarts."""


class Accounting(Model):
    """Devices times hours. The device is the GPU where the pods ask for some, else the CPU core."""

    device: Annotated[str, Field(max_length=253)]
    """The resource that is counted, for example nvidia.com/gpu, or cpu."""
    count: float
    """Devices of all pods together."""
    asked_hours: float = 0
    """Device-hours from when the pods were asked for until they were given back."""
    used_hours: float = 0
    """Device-hours in which all pods ran."""
    lost_hours: float = 0
    """Device-hours of work that was done again, or never: from the last checkpoint to the end of an attempt."""
    cost: float | None = None
    """askedHours times the price of the chart's table (values `prices`)."""
    updated: Time
    """Up to when it is counted."""


class JobStatus(Model):
    """What every kind of job reports."""

    conditions: Conditions = []
    """`Succeeded` (Unknown while the job runs) and details: Running, Suspended, Admitted, Stalled, Pushed."""
    observed_generation: int | None = None
    """The generation of the spec that this status speaks of."""
    start_time: Time | None = None
    """When pods were first asked for; after a suspension, when they were asked for again."""
    completion_time: Time | None = None
    """When the job ended."""
    plan_digest: Annotated[str, Field(max_length=80)] | None = None
    """`sha256:` of the resolved plan of the first attempt."""
    artifact: Artifact | None = None
    """What the job made."""
    pushed: Annotated[list[Pushed], Field(max_length=MOST_DESTINATIONS, json_schema_extra=list_map("uri"))] = []
    """Where it was pushed to."""
    failure: Failure | None = None
    """Why the last attempt that failed did so."""
    restarts: int | None = None
    """Attempts that failed and were followed by another: they count against restartPolicy.maxRestarts."""
    interruptions: int | None = None
    """Attempts that were taken away and followed by another."""
    attempts: Annotated[list[Attempt], Field(max_length=10, json_schema_extra=list_map("number"))] = []
    """The newest ten runs of the group of pods."""
    accounting: Accounting | None = None
    """What the job cost."""
