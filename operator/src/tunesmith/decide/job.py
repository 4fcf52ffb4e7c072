"""Jobs of every kind: references -> plan -> attempts -> outcome. One chain; `jobkinds.py` has where they differ."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from tunesmith.api.finetunejob import FineTuneJob
from tunesmith.api.job import Failure
from tunesmith.children.gang import pod_group
from tunesmith.children.inspect import inspect_job, inspect_name
from tunesmith.children.job import headless_service
from tunesmith.children.meta import Object, job_name
from tunesmith.children.plan import plan_config_map
from tunesmith.decide import attempts, lifecycle, preflight, queueing
from tunesmith.decide import pods as pod_facts
from tunesmith.decide.closing import Closing
from tunesmith.decide.jobkinds import KINDS
from tunesmith.decide.jobstate import WAIT_SECONDS, job_condition
from tunesmith.decide.references import sources, wrong_kind
from tunesmith.decide.world import Decision, Event, World, deleting, foreign
from tunesmith.settings import Settings
from tunesmith.training.matrix import PlanError
from tunesmith.training.plan import AnyPlan, TrainPlan, digest
from tunesmith.training.report import duration

# Jobs of older attempts are kept for the logs of their pods.
KEPT_JOBS = 3


def decide(world: World, settings: Settings) -> Decision | None:
    """What to do for a job now. None: nothing, it is over."""
    kind = KINDS[world.resource["kind"]]
    resource = kind.model.model_validate(world.resource)
    if deleting(world.resource):
        return None
    if lifecycle.terminal(resource.status):
        return lifecycle.tidy(world, resource, settings)
    chain = _Chain(world, settings, kind, resource)
    decision = (
        chain.deadline()
        or chain.name_taken()
        or chain.suspended()
        or chain.succeeded()
        or chain.ended()
        or chain.closing()
        or chain.references()
        or chain.impossible()
        or chain.missing()
        or chain.preflight()
        or chain.older_pods()
        or chain.backoff()
        or chain.run()
    )
    return chain.finished(decision)


class _Chain(Closing):
    """The checks, each the end of the chain or None."""

    # -- the checks, in order ---------------------------------------------------------------------------------

    def deadline(self) -> Decision | None:
        """A live Job has the deadline itself; here it counts for what lies between two of them."""
        limit = self.resource.spec.active_deadline_seconds
        if limit is None or self.old.start_time is None or self.live_job is not None:
            return None
        if self.world.now < datetime.fromisoformat(self.old.start_time) + timedelta(seconds=limit):
            return None
        return self.fail(lifecycle.deadline_exceeded(limit))

    def name_taken(self) -> Decision | None:
        name = job_name(self.owner, self.number)
        message = foreign(self.world, [("ConfigMap", name), ("Job", name), ("Service", name)])
        return self.wait("NameTaken", message) if message else None

    def succeeded(self) -> Decision | None:
        if job_condition(self.live_job, "Complete") is None or (self.open and self.open.reason):
            return None
        if not self.pods:  # the artefact is in the store, but nobody is left to name it
            return self.close(Failure(reason="Interrupted", message="its pods were deleted before they could be read"))
        endings = [ending for pod in self.pods if (ending := pod_facts.ending(pod)) and ending.artifact]
        if not endings:
            message = "the pods ended well but reported no artefact: is the image tunesmith's trainer?"
            return self.fail(Failure(reason="Internal", message=message))
        artifact = endings[0].artifact
        fields: dict[str, Any] = {"artifact": artifact, "failure": None, "completion_time": self.world.stamp}
        fields |= self.kind.made(endings[0], self.old, self.world.stamp)
        message = artifact.uri if artifact else ""
        attempt = self.observed().model_copy(update={"end_time": self.world.stamp, "reason": "Completed"})
        return Decision(
            status=self.status("True", "Completed", message, attempt=attempt, **fields),
            events=(Event("Normal", "Completed", message),),
        )

    def references(self) -> Decision | None:
        if not self.old.attempts and self.live_job is None and self.found.waiting:
            return self.wait("WaitingForReference", "; ".join(self.found.waiting.values()))
        return None

    def impossible(self) -> Decision | None:
        if self.old.attempts or self.live_job is not None:
            return None
        for name, source, wanted in sources(self.resource):
            if message := wrong_kind(self.found, source, name, wanted, self.owner.kind):
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

    def preflight(self) -> Decision | None:
        """Have the model looked at, and see that the job fits, before any of its pods is made."""
        resource = self.resource
        if not isinstance(resource, FineTuneJob) or self.old.attempts or resource.spec.memory.check == "Disabled":
            return None
        begun = self.live_job is not None or self._stored(self.number) is not None
        plan, name = self.plan(), inspect_name(self.owner)
        job = self.world.children.get(("Job", name))
        if not isinstance(plan, TrainPlan) or (job is None and begun):
            return None
        if message := foreign(self.world, [("Job", name)]):
            return self.wait("NameTaken", message)
        if job is None:
            inspect = inspect_job(self.owner, resource.spec, plan, self.settings)
            return replace(self.wait("Inspecting", "the model's configuration is looked at"), create=(inspect,))
        found = preflight.outcome(job, self.world.pods)
        if not begun and found.pending:
            waiting = self.world.report.waiting if self.world.report else None
            reason = "WaitingForInput" if waiting else "Inspecting"
            return self.wait(reason, waiting or found.pending, again=self.settings.poll_seconds)
        if not begun and found.failure:
            return self.fail(found.failure)
        if found.inspection is None:
            return None
        try:
            self.choice = preflight.choice(resource.spec, plan, found.inspection, self.world.gpu_memory)
        except PlanError as error:
            return self.fail(Failure(reason="ConfigError", message=str(error)))
        if not begun and self.choice and self.choice.fits is False:
            message = self.choice.status.summary
            if resource.spec.memory.check == "Refuse":
                return self.fail(Failure(reason="DoesNotFit", message=message), memory=self.choice.status)
            self.events.append(Event("Warning", "DoesNotFit", message))
        return None

    def older_pods(self) -> Decision | None:
        """Never two processes of one rank: an attempt begins when every pod of the ones before is gone or over."""
        if self.live_job is None and self.alive:
            names = ", ".join(sorted(pod_facts.name(pod) for pod in self.alive))
            return self.wait("Restarting", f"pods of an earlier attempt are still ending: {names}")
        return None

    def backoff(self) -> Decision | None:
        if self.live_job is not None or not self.old.attempts or self.open:
            return None
        last = self.old.attempts[-1]
        before = self.old.model_copy(update={"restarts": (self.old.restarts or 0) - last.counted})
        verdict = attempts.verdict(self.resource.spec, before, last.reason or "Internal")
        left = (attempts.due(last, verdict.wait_seconds) - self.world.now).total_seconds()
        if left <= 0:
            return None
        current = next((c for c in self.old.conditions if c.type == "Succeeded"), None)
        if current and current.reason == "Restarting":
            return Decision(status=self.old, again=left)
        return self.wait("Restarting", f"attempt {self.number} begins in {duration(left)}", again=left)

    def run(self) -> Decision:
        plan = self.plan()
        nodes = plan.pods
        up = sum(pod_facts.running(pod) for pod in self.pods)
        reported = self.reported(plan)
        if self.choice:
            reported["memory"] = self.choice.status
        attempt = self.observed(plan)
        if self.open and "progress" not in reported:  # a step alone is not worth a write
            attempt = attempt.model_copy(
                update={"last_step": self.open.last_step, "checkpoint_step": self.open.checkpoint_step}
            )
        queued = queueing.admission(self.resource.spec, self.live_job, self.world.workload)
        if queued is not None and not queued.admitted:
            reason, message = "Queued", queued.message
        elif self.world.report and self.world.report.waiting:
            reason, message = "WaitingForInput", self.world.report.waiting
        elif up == nodes:
            reason, message = "Running", f"all {nodes} pods run" if nodes > 1 else "the pod runs"
        else:
            held = pod_facts.problem(self.pods) or next(iter(self.world.refusals), None)
            reason, message = "Starting", held or f"{up} of {nodes} pods run"
        if self.live_job is None:
            self.events.append(Event("Normal", "Started", f"attempt {self.number}: {nodes} pod(s)"))
        if queued is not None and queued.preempted(self.old):
            self.events.append(Event("Warning", "Preempted", queued.message))
        return Decision(
            status=self.status(
                "Unknown",
                reason,
                message,
                attempt=attempt,
                queued=queued,
                start_time=self.old.start_time or self.world.stamp,
                plan_digest=self.old.plan_digest or digest(plan),
                **reported,
            ),
            create=self.group(plan),
            delete=tuple(self.jobs[n] for n in sorted(self.jobs) if n <= self.number - KEPT_JOBS),
            again=self.settings.poll_seconds if up else WAIT_SECONDS,
        )

    def group(self, plan: AnyPlan) -> tuple[Object, ...]:
        """The objects of an attempt: its plan, the Service by which several processes meet, and its Job."""
        spec, settings = self.resource.spec, self.settings
        left = lifecycle.seconds_left(spec.active_deadline_seconds, self.old.start_time, self.world.now)
        job = self.kind.job(self.owner, self.number, spec, plan, settings, left)
        objects = [plan_config_map(self.owner, self.number, plan)]
        if plan.world_size > 1:
            objects.append(headless_service(self.owner, self.number))
        gang = pod_group(self.owner, self.number, plan.pods, spec, settings)
        if gang and self.live_job is None:
            objects.append(gang)
        return (*objects, job)
