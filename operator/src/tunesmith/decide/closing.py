"""How an attempt ends: seen, written down, and waited for until no process of it is left."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

from tunesmith.api.finetunejob import FineTuneJob
from tunesmith.api.job import Failure
from tunesmith.decide import attempts, lifecycle, progress
from tunesmith.decide import pods as pod_facts
from tunesmith.decide.jobstate import JobState, job_condition, job_finished
from tunesmith.decide.world import Decision, Event
from tunesmith.training.plan import TrainPlan
from tunesmith.training.planning import nodes_that_divide
from tunesmith.training.report import duration

# Attempts that are ended by deleting their Job.
OUR_ENDINGS = frozenset({"Stalled", "TooFewNodes", "Suspended"})


class Closing(JobState):
    """The checks of an open attempt, each the end of the chain or None."""

    def suspended(self) -> Decision | None:
        if not self.resource.spec.suspend:
            return None
        if self.open and self.open.reason is None and not job_condition(self.live_job, "Complete"):
            ending = self.open.model_copy(update={"reason": "Suspended", "message": "spec.suspend is true"})
            return self.wait("Suspending", "its pods write a checkpoint and end", attempt=ending, again=0)
        if self.open and self.open.reason is None:
            return None  # it was over before it could be suspended
        if self.live_job is not None and not job_finished(self.live_job):
            waiting = self.wait("Suspending", "its pods write a checkpoint and end")
            return replace(waiting, delete=(self.live_job,))
        if self.alive:
            return self.wait("Suspending", "its pods write a checkpoint and end")
        closed = self.open.model_copy(update={"end_time": self.world.stamp}) if self.open else None
        done = self.wait("Suspended", "spec.suspend is true", attempt=closed, start_time=None)
        return replace(done, again=None)

    def ended(self) -> Decision | None:
        """Write down why the attempt ends, as soon as it can be known: pods and what they say may be gone soon."""
        if self.open is None or self.open.reason is not None:
            return None
        settled = (self.live_job is None or job_finished(self.live_job)) and not self.live_pods()
        if job_condition(self.live_job, "Failed", "DeadlineExceeded"):
            return self.close(lifecycle.deadline_exceeded(self.resource.spec.active_deadline_seconds or 0))
        failure = pod_facts.failure(self.pods)
        if failure is None and settled:
            what = "its Job was deleted" if self.live_job is None else "its pods were taken away before they ended"
            failure = Failure(reason="Interrupted", message=what)
        # What was taken away may have been so because of another that has not said its word yet.
        if failure is None or (failure.reason in pod_facts.TAKEN_AWAY and not settled):
            return self.stalled() or self.too_few_nodes()
        return self.close(failure)

    def stalled(self) -> Decision | None:
        if not isinstance(self.resource, FineTuneJob) or self.resource.spec.stall.action != "Restart":
            return None
        message = progress.stalled(self.world.report, self.resource.spec)
        return self.close(Failure(reason="Stalled", message=message)) if message else None

    def too_few_nodes(self) -> Decision | None:
        """With spec.elastic: end an attempt whose pods cannot all be scheduled, if fewer would do."""
        if not isinstance(self.resource, FineTuneJob) or not self.resource.spec.elastic or self.live_job is None:
            return None
        elastic, plan = self.resource.spec.elastic, self.plan()
        started = (self.live_job.get("status") or {}).get("startTime")
        # With ZeRO, fewer processes would have to hold more each.
        if started is None or not isinstance(plan, TrainPlan) or plan.distribution.strategy != "DDP":
            return None
        waited = (self.world.now - datetime.fromisoformat(started)).total_seconds()
        scheduled = sum(pod_facts.scheduled(pod) for pod in self.pods)
        ending = job_condition(self.live_job, "FailureTarget") or pod_facts.failed_containers(self.pods)
        if ending or scheduled >= plan.nodes or waited < elastic.wait_seconds:
            return None
        fewer = nodes_that_divide(plan, scheduled, elastic.min_nodes)
        if fewer is None:
            return None
        message = f"only {scheduled} of {plan.nodes} nodes could be had in {duration(waited)}: goes on with {fewer}"
        return self.close(Failure(reason="TooFewNodes", message=message), scheduled_nodes=scheduled)

    def close(self, failure: Failure, **fields: Any) -> Decision:
        """Write down the end of the open attempt; nothing is made or deleted before that is written."""
        attempt = self.observed().model_copy(
            update={
                "reason": failure.reason,
                "message": failure.message[:1024],
                "pod": failure.pod,
                "rank": failure.rank,
                "exit_code": failure.exit_code,
                **fields,
            }
        )
        record = self.old.model_copy(update={"attempts": attempts.record(self.old.attempts, attempt)})
        verdict = attempts.verdict(self.resource.spec, record, failure.reason)
        if verdict.fail is not None:
            why = f"{failure.message} ({verdict.fail})" if verdict.fail else failure.message
            final = failure.model_copy(update={"message": why[:4096]})
            return self.fail(final, attempt.model_copy(update={"end_time": self.world.stamp}))
        message = f"attempt {attempt.number} ended ({failure.reason}: {failure.message}); its pods are ending"
        self.events.append(Event("Warning", failure.reason, f"attempt {attempt.number}: {failure.message}"))
        ending = attempt.model_copy(update={"counted": verdict.counted})
        return self.wait("Restarting", message, attempt=ending, failure=failure, again=1)

    def closing(self) -> Decision | None:
        """An attempt whose end is written down: wait until no process of it is left."""
        if self.open is None or self.open.reason is None:
            return None
        message = f"attempt {self.open.number} ended ({self.open.reason}: {self.open.message}); its pods are ending"
        if self.live_job is not None and not job_finished(self.live_job):
            # Where a pod failed, the Job controller ends the others, and keeps the failed one with its log.
            return replace(
                self.wait("Restarting", message), delete=(self.live_job,) if self.open.reason in OUR_ENDINGS else ()
            )
        if self.live_pods():
            return self.wait("Restarting", message)
        verdict = attempts.verdict(self.resource.spec, self.old, self.open.reason)
        wait = verdict.wait_seconds
        then = "now" if wait == 0 else f"in {duration(wait)}"
        message = (
            f"attempt {self.open.number} ended ({self.open.reason}: {self.open.message}): "
            f"attempt {self.open.number + 1} begins {then}"
        )
        counter = "restarts" if self.open.counted else "interruptions"
        self.events.append(Event("Normal", "Restarting", message))
        return self.wait(
            "Restarting",
            message,
            attempt=self.open.model_copy(update={"end_time": self.world.stamp}),
            again=wait,
            **{counter: (getattr(self.old, counter) or 0) + 1},
        )
