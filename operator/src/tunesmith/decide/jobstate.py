"""What is seen of a job, and the status that says so: the common ground of the checks in `decide/job.py`."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any, Literal

from tunesmith.api.finetunejob import FineTuneJob, FineTuneJobStatus
from tunesmith.api.job import Attempt, Failure, JobStatus
from tunesmith.api.kinds import AnyJob
from tunesmith.children.meta import ATTEMPT_LABEL, Object, job_name
from tunesmith.decide import attempts, progress, queueing
from tunesmith.decide import pods as pod_facts
from tunesmith.decide.accounting import advance, devices
from tunesmith.decide.jobkinds import Kind
from tunesmith.decide.references import resolve, sources
from tunesmith.decide.world import Decision, Event, World, condition, with_condition
from tunesmith.settings import Settings
from tunesmith.training.memory import Choice
from tunesmith.training.plan import AnyPlan, Job, TrainPlan

WAIT_SECONDS = 15.0
# So long after the end of its grace a pod is taken to be on a node that cannot say that it is gone.
OVERDUE_SECONDS = 60


class JobState:
    """One job as it is now. Made anew for every decision."""

    def __init__(self, world: World, settings: Settings, kind: Kind, resource: AnyJob) -> None:
        self.world, self.settings, self.kind, self.resource = world, settings, kind, resource
        self.owner, self.old = world.owner, resource.status
        self.found = resolve(world, [source for _, source, _ in sources(resource)])
        self.open = attempts.current(self.old)
        self.number = attempts.number(self.old)
        self.jobs = {
            int(child["metadata"]["labels"][ATTEMPT_LABEL]): child
            for (kind_, _), child in world.children.items()
            if kind_ == "Job" and ATTEMPT_LABEL in child["metadata"]["labels"] and self.owner.owns(child)
        }
        self.live_job = self.jobs.get(self.number)
        self.pods = [
            pod
            for pod in world.pods
            if pod["metadata"]["labels"].get(ATTEMPT_LABEL) == str(self.number) and not self._of_a_namesake(pod)
        ]
        self.alive = [p for p in world.pods if ATTEMPT_LABEL in p["metadata"]["labels"] and not pod_facts.is_over(p)]
        self.events: list[Event] = []
        self.choice: Choice | None = None

    # -- outcomes ---------------------------------------------------------------------------------------------

    def wait(self, reason: str, message: str, again: float = WAIT_SECONDS, **fields: Any) -> Decision:
        return Decision(status=self.status("Unknown", reason, message, **fields), again=again)

    def fail(self, failure: Failure, attempt: Attempt | None = None, **fields: Any) -> Decision:
        stopping = self.live_job is not None and not job_finished(self.live_job)
        doomed = job_condition(self.live_job, "FailureTarget") or pod_facts.failed_containers(self.pods)
        self.events.append(Event("Warning", failure.reason, failure.message))
        return Decision(
            status=self.status(
                "False",
                failure.reason,
                failure.message,
                attempt=attempt,
                completion_time=self.world.stamp,
                failure=failure,
                **fields,
            ),
            delete=(self.live_job,) if stopping and not doomed and self.live_job else (),
        )

    # -- parts of the status ----------------------------------------------------------------------------------

    def _of_a_namesake(self, pod: Object) -> bool:
        """Whether a pod is left of a resource of the same name that was deleted: how that one ended is no word on this
        one.
        """
        if self.live_job is None:
            return self.open is None
        jobs = [ref["uid"] for ref in pod["metadata"].get("ownerReferences", ()) if ref.get("kind") == "Job"]
        return bool(jobs) and self.live_job["metadata"]["uid"] not in jobs

    def live_pods(self) -> list[Object]:
        """Pods of this attempt that are not over."""
        return [pod for pod in self.pods if not pod_facts.is_over(pod)]

    def plan(self) -> AnyPlan:
        """The plan of the attempt: the stored one where there is one, else that of the attempt before with the sizes
        of this one, so that a run keeps what it began with whatever becomes of the operator's settings.
        """
        if stored := self._stored(self.number):
            return stored
        base = self._stored(self.number - 1)
        if base is None:
            job = Job(namespace=self.owner.namespace, name=self.owner.name, uid=self.owner.uid)
            base = self.kind.plan(job, self.resource.spec, self.found.addresses, self.settings.default_store)
            if self.choice and isinstance(base, TrainPlan):
                base = base.model_copy(update={"distribution": self.choice.distribution})
        if self.old.attempts:
            return self.kind.again(self.resource.spec, base, self.number, self.old.attempts)
        return base

    def _stored(self, number: int) -> AnyPlan | None:
        stored = self.world.children.get(("ConfigMap", job_name(self.owner, number)))
        if stored is None or not self.owner.owns(stored):
            return None
        return self.kind.plan_model.model_validate_json(stored["data"]["plan.json"])

    def observed(self, plan: AnyPlan | None = None) -> Attempt:
        """The record of this attempt, with what can be seen of it now."""
        if self.open:
            attempt = self.open
        else:
            plan = plan or self.plan()
            attempt = Attempt(number=self.number, nodes=plan.pods, micro_batch_size=plan.rows_at_once)
        update: dict[str, Any] = {}
        if attempt.start_time is None and sum(pod_facts.running(pod) for pod in self.pods) == attempt.nodes:
            update["start_time"] = self.world.stamp
        report = self.world.report
        if report and not report.waiting and self.pods:
            update |= {"resumed_step": report.resumed_step, "last_step": report.step}
            update |= {"checkpoint_step": report.checkpoint_step}
        said = [ending for pod in self.pods if (ending := pod_facts.ending(pod)) and ending.step is not None]
        for ending in said:
            update |= {"last_step": ending.step, "checkpoint_step": ending.checkpoint_step}
        return attempt.model_copy(update={key: value for key, value in update.items() if value is not None})

    def reported(self, plan: AnyPlan) -> dict[str, Any]:
        """Fields of the status that rank 0's report fills."""
        report = self.world.report
        if report is None or report.waiting:
            return {}
        old = getattr(self.old, "progress", None)
        if old and old.updated:
            passed = self.world.now - datetime.fromisoformat(old.updated)
            if passed.total_seconds() < self.settings.progress_seconds:
                return {}
        new = self.kind.reported(report, plan, self.old, self.world.stamp)
        return {key: value for key, value in new.items() if value is not None}

    def status(
        self,
        succeeded: Literal["True", "False", "Unknown"],
        reason: str,
        message: str,
        *,
        attempt: Attempt | None = None,
        queued: queueing.Admission | None = None,
        **fields: Any,
    ) -> JobStatus:
        world, old = self.world, self.old
        record = attempts.record(old.attempts, attempt) if attempt else old.attempts
        conditions = with_condition(
            old.conditions, condition(world, old.conditions, "Succeeded", succeeded, reason, message)
        )
        for type_, holds, why, text in self.details(reason, message, queued):
            conditions = with_condition(
                conditions, condition(world, old.conditions, type_, "True" if holds else "False", why, text)
            )
        return old.model_copy(
            update={
                "conditions": conditions,
                "observed_generation": world.generation,
                "attempts": record,
                **fields,
            }
        )

    def details(self, reason: str, message: str, queued: queueing.Admission | None) -> list[tuple[str, bool, str, str]]:
        """(type, whether it holds, reason, message) of the conditions beside Succeeded. Those that never held are
        left out.
        """
        known = {c.type for c in self.old.conditions}
        found = [("Running", reason == "Running", reason, message)]
        if reason == "Suspended" or "Suspended" in known:
            found.append(("Suspended", reason == "Suspended", reason, message))
        if queued is not None:
            found.append(("Admitted", queued.admitted, queued.reason, queued.message))
        still = None
        if reason == "Running" and isinstance(self.resource, FineTuneJob):
            still = progress.stalled(self.world.report, self.resource.spec)
        if still or "Stalled" in known:
            found.append(("Stalled", bool(still), "NoProgress" if still else "Progressing", still or message))
        return found

    def finished(self, decision: Decision) -> Decision:
        """The decision with what goes along with every one: events, pods on lost nodes, and the account where the
        status changes anyway.
        """
        decision = replace(decision, events=(*decision.events, *self.events), kill=tuple(self.stuck()))
        wanted, status, step = devices(self.resource.spec.resources), decision.status, 0.0
        if wanted is None or not isinstance(status, JobStatus) or status == self.old or not status.attempts:
            return decision
        if isinstance(self.old, FineTuneJobStatus) and self.old.progress:
            step = self.old.progress.step_seconds or 0.0
        running = self.open is not None and not (self.live_job or {}).get("spec", {}).get("suspend")
        account = advance(
            self.old.accounting,
            wanted,
            status.attempts[-1].nodes,
            now=self.world.stamp,
            held=running,
            since=self.open.start_time if self.open and self.live_pods() else None,
            lost_seconds=attempts.redone(self.old.attempts, status.attempts) * step,
            prices=self.settings.prices,
        )
        return replace(decision, status=status.model_copy(update={"accounting": account}))

    def stuck(self) -> list[Object]:
        """Pods on their way out whose node cannot say that they are gone. What they might still write is fenced by
        the number of their attempt.
        """
        return [
            pod
            for pod in self.alive
            if (end := pod["metadata"].get("deletionTimestamp"))
            and (
                pod.get("spec", {}).get("nodeName") in self.world.lost_nodes
                or (self.world.now - datetime.fromisoformat(end)).total_seconds() > OVERDUE_SECONDS
            )
        ]


def job_condition(job: Object | None, type_: str, reason: str | None = None) -> Object | None:
    """The condition of a Job, if it holds (for that reason)."""
    conditions = ((job or {}).get("status") or {}).get("conditions", ())
    return next(
        (c for c in conditions if c["type"] == type_ and c["status"] == "True" and reason in {None, c.get("reason")}),
        None,
    )


def job_finished(job: Object) -> bool:
    """Whether no pod of the Job runs or will run."""
    return bool(job_condition(job, "Failed") or job_condition(job, "Complete"))
