"""FineTuneJob and MergeJob: references -> plan -> Job -> outcome. One chain, since they differ only in the plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from tunesmith.api.finetunejob import FineTuneJob, FineTuneJobStatus, Progress
from tunesmith.api.job import Failure, JobStatus
from tunesmith.api.mergejob import MergeJob, MergeJobStatus
from tunesmith.children.job import headless_service, merge_job, train_job
from tunesmith.children.meta import ATTEMPT_LABEL, Object, job_name, plan_name
from tunesmith.children.plan import plan_config_map
from tunesmith.decide import pods as pod_facts
from tunesmith.decide.references import resolve, sources, wrong_kind
from tunesmith.decide.world import Decision, Event, World, condition, deleting, foreign
from tunesmith.settings import Settings
from tunesmith.training.plan import Job, MergePlan, PlanError, TrainPlan, digest, merge_plan, train_plan
from tunesmith.training.report import duration

WAIT_SECONDS = 15.0
# A pod that was taken away does not fail its job, but something that takes it away every time does.
MAX_ATTEMPTS = 16


@dataclass(frozen=True)
class Kind:
    """Where the two kinds of job differ."""

    model: type[FineTuneJob] | type[MergeJob]
    plan_model: type[TrainPlan] | type[MergePlan]
    plan: Callable[..., TrainPlan | MergePlan]
    job: Callable[..., Object]


KINDS = {
    "FineTuneJob": Kind(FineTuneJob, TrainPlan, train_plan, train_job),
    "MergeJob": Kind(MergeJob, MergePlan, merge_plan, merge_job),
}


def terminal(status: JobStatus) -> bool:
    """Whether the job has ended. It never runs again, and its status is never written again."""
    return any(c.type == "Succeeded" and c.status != "Unknown" for c in status.conditions)


def decide(world: World, settings: Settings) -> Decision | None:
    """What to do for a job now. None: nothing, it is over."""
    kind = KINDS[world.resource["kind"]]
    resource = kind.model.model_validate(world.resource)
    if deleting(world.resource) or terminal(resource.status):
        return None
    chain = _Chain(world, settings, kind, resource)
    return (
        chain.references()
        or chain.impossible()
        or chain.missing()
        or chain.name_taken()
        or chain.failed()
        or chain.succeeded()
        or chain.run()
    )


class _Chain:
    """The checks, each the end of the chain or None. Made anew for every decision."""

    def __init__(self, world: World, settings: Settings, kind: Kind, resource: FineTuneJob | MergeJob) -> None:
        self.world, self.settings, self.kind, self.resource = world, settings, kind, resource
        self.owner = world.owner
        self.found = resolve(world, [source for _, source, _ in sources(resource)])
        self.attempts = {
            int(child["metadata"]["labels"][ATTEMPT_LABEL]): child
            for (kind_, _), child in world.children.items()
            if kind_ == "Job" and self.owner.owns(child)
        }
        self.attempt = max(self.attempts, default=1)
        self.live_job = self.attempts.get(self.attempt)
        self.pods = [p for p in world.pods if p["metadata"]["labels"].get(ATTEMPT_LABEL) == str(self.attempt)]

    # -- the checks, in order ---------------------------------------------------------------------------------

    def references(self) -> Decision | None:
        if self.live_job is None and self.found.waiting:
            return self.wait("WaitingForReference", "; ".join(self.found.waiting.values()))
        return None

    def impossible(self) -> Decision | None:
        if self.live_job is not None:
            return None
        for name, source, wanted in sources(self.resource):
            if message := wrong_kind(self.found, source, name, wanted):
                return self.fail(Failure(reason="ConfigError", message=message))
        try:
            self.plan()
        except PlanError as error:
            return self.fail(Failure(reason="ConfigError", message=str(error)))
        return None

    def missing(self) -> Decision | None:
        if self.live_job is None and self.world.missing:
            return self.wait("WaitingForInput", "; ".join(self.world.missing))
        return None

    def name_taken(self) -> Decision | None:
        job = job_name(self.owner, self.attempt)
        names = [("ConfigMap", plan_name(self.owner)), ("Job", job), ("Service", job)]
        message = foreign(self.world, names)
        return self.wait("NameTaken", message) if message else None

    def failed(self) -> Decision | None:
        gone = _job_condition(self.live_job, "Failed") is not None
        if not gone and _job_condition(self.live_job, "FailureTarget") is None:
            return None
        failure = pod_facts.failure(self.pods, "Interrupted", "its pods were taken away before they ended")
        if failure.reason not in pod_facts.TAKEN_AWAY:
            return self.fail(failure)  # at once, though other pods may still be ending
        if not gone:
            return self.wait("Restarting", f"attempt {self.attempt} was interrupted; its pods are ending")
        if self.attempt >= MAX_ATTEMPTS:
            return self.fail(
                failure.model_copy(update={"message": f"{failure.message} (attempt {self.attempt}, the last)"})
            )
        return self.restart(failure)

    def succeeded(self) -> Decision | None:
        if _job_condition(self.live_job, "Complete") is None:
            return None
        endings = [ending for pod in self.pods if (ending := pod_facts.ending(pod)) and ending.artifact]
        if not endings:
            return self.fail(
                Failure(
                    reason="Internal",
                    message="the pods ended well but reported no artefact: is the image tunesmith's trainer?",
                )
            )
        artifact = endings[0].artifact
        fields: dict[str, Any] = {"artifact": artifact}
        message = f"{artifact.uri if artifact else ''}"
        if isinstance(self.resource, MergeJob):
            error = endings[0].logit_error
            fields["logit_error"] = None if error is None else float(f"{error:.3g}")
        elif self.resource.status.progress:
            total = self.resource.status.progress.total_steps
            fields["progress"] = self.resource.status.progress.model_copy(
                update={
                    "step": total,
                    "percent": 100,
                    "eta_seconds": 0,
                    "eta": "0s",
                    "updated": self.world.stamp,
                }
            )
        return Decision(
            status=self.status("True", "Completed", message, completion_time=self.world.stamp, **fields),
            events=(Event("Normal", "Completed", message),),
        )

    def run(self) -> Decision:
        plan = self.plan()
        nodes = plan.nodes if isinstance(plan, TrainPlan) else 1
        up = sum(pod_facts.running(pod) for pod in self.pods)
        if self.world.report and self.world.report.waiting:
            reason, message = "WaitingForInput", self.world.report.waiting
        elif up == nodes:
            reason, message = "Running", f"all {nodes} pods run" if nodes > 1 else "the pod runs"
        else:
            held = pod_facts.problem(self.pods)
            reason, message = "Starting", held or f"{up} of {nodes} pods run"
        first = self.live_job is None and not self.resource.status.start_time
        return Decision(
            status=self.status(
                "Unknown",
                reason,
                message,
                start_time=self.resource.status.start_time or self.world.stamp,
                plan_digest=digest(plan),
                **self.progress(),
            ),
            create=(plan_config_map(self.owner, plan), *self.group(self.attempt, plan)),
            again=self.settings.poll_seconds if up else WAIT_SECONDS,
            events=(Event("Normal", "Started", f"attempt {self.attempt}: {nodes} pod(s)"),) if first else (),
        )

    # -- outcomes ---------------------------------------------------------------------------------------------

    def wait(self, reason: str, message: str) -> Decision:
        return Decision(status=self.status("Unknown", reason, message), again=WAIT_SECONDS)

    def fail(self, failure: Failure) -> Decision:
        return Decision(
            status=self.status(
                "False", failure.reason, failure.message, completion_time=self.world.stamp, failure=failure
            ),
            events=(Event("Warning", failure.reason, failure.message),),
        )

    def restart(self, failure: Failure) -> Decision:
        """Begin the next attempt. A Job has its Failed condition only after every pod of it is gone or ended, so
        that no old process is left to meet the new ones.
        """
        following = self.attempt + 1
        message = f"attempt {self.attempt} was interrupted ({failure.message}): attempt {following} begins"
        return Decision(
            status=self.status("Unknown", "Restarting", message),
            create=self.group(following, self.plan()),
            again=WAIT_SECONDS,
            events=(Event("Warning", "Restarting", message),),
        )

    def group(self, attempt: int, plan: TrainPlan | MergePlan) -> tuple[Object, ...]:
        """The objects of one attempt: its Job, and before it the Service by which several processes meet."""
        job = self.kind.job(self.owner, attempt, self.resource.spec, plan, self.settings)
        if isinstance(plan, TrainPlan) and plan.nodes * plan.processes_per_node > 1:
            return headless_service(self.owner, attempt), job
        return (job,)

    # -- parts of the status ----------------------------------------------------------------------------------

    def plan(self) -> TrainPlan | MergePlan:
        """The plan of the run: the stored one where there is one, so that a run keeps what it began with."""
        stored = self.world.children.get(("ConfigMap", plan_name(self.owner)))
        if stored is not None and self.owner.owns(stored):
            return self.kind.plan_model.model_validate_json(stored["data"]["plan.json"])
        job = Job(namespace=self.owner.namespace, name=self.owner.name, uid=self.owner.uid)
        return self.kind.plan(job, self.resource.spec, self.found.addresses, self.settings.default_store)

    def status(
        self, succeeded: Literal["True", "False", "Unknown"], reason: str, message: str, **fields: Any
    ) -> FineTuneJobStatus | MergeJobStatus:
        old = self.resource.status
        return old.model_copy(
            update={
                "conditions": [condition(self.world, old.conditions, "Succeeded", succeeded, reason, message)],
                "observed_generation": self.world.generation,
                **fields,
            }
        )

    def progress(self) -> dict[str, Any]:
        """Progress as a field of the status, kept as it is where it was written a moment ago."""
        report = self.world.report
        if report is None or report.waiting or not isinstance(self.resource, FineTuneJob):
            return {}
        old = self.resource.status.progress
        if old and old.updated and not self._older(old.updated, self.settings.progress_seconds):
            return {}
        percent = 100 * report.step // max(1, report.total_steps)
        values = report.model_dump(exclude={"waiting"})
        for key in ("loss", "tokens_per_second"):
            values[key] = None if values[key] is None else float(f"{values[key]:.4g}")
        eta = None if report.eta_seconds is None else duration(report.eta_seconds)
        new = Progress(**values, percent=percent, eta=eta, updated=self.world.stamp)
        unchanged = old is not None and (old.step, old.loss) == (new.step, new.loss)
        return {} if unchanged else {"progress": new}

    def _older(self, stamp: str, seconds: float) -> bool:
        return (self.world.now - datetime.fromisoformat(stamp)).total_seconds() >= seconds


def _job_condition(job: Object | None, type_: str) -> Object | None:
    conditions = ((job or {}).get("status") or {}).get("conditions", ())
    return next((c for c in conditions if c["type"] == type_ and c["status"] == "True"), None)
