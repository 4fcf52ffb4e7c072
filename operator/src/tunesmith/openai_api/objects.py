"""FineTuneJobs as OpenAI's objects: job with its status, events, checkpoints, and the model that was made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from tunesmith.api.base import Condition
from tunesmith.client.resources import FineTuneJob
from tunesmith.openai_api.errors import ApiRefusal
from tunesmith.openai_api.requests import CANCELLED_ANNOTATION, MADE_LABEL, REQUEST_ANNOTATION, CreateJob

Object = dict[str, Any]
# By the reason of the condition Succeeded while it is Unknown; any other one is `running`.
STATUSES = {
    **dict.fromkeys(("Pending", "WaitingForReference", "WaitingForInput", "Inspecting"), "validating_files"),
    **dict.fromkeys(("Queued", "Admitted", "Starting", "Suspended", "Rejected", "NameTaken"), "queued"),
}
ENDED = ("succeeded", "failed", "cancelled")
PARAMETERS = {"DataError": "training_file", "ModelError": "model", "ConfigError": "method"}
"""The parameter of the request that a failure speaks of."""


def seconds(time: str) -> int:
    """Unix time of RFC 3339."""
    return int(datetime.fromisoformat(time).timestamp())


def request_of(job: FineTuneJob) -> CreateJob:
    """What was asked for."""
    return CreateJob.model_validate_json(job.metadata.annotations[REQUEST_ANNOTATION])


def came_this_way(job: FineTuneJob) -> bool:
    """Whether a request of it can be read: anybody who may change the job can also change its annotations."""
    annotations = job.metadata.annotations
    if MADE_LABEL not in job.metadata.labels or REQUEST_ANNOTATION not in annotations:
        return False
    try:
        seconds(annotations.get(CANCELLED_ANNOTATION, "1970-01-01T00:00:00Z"))
        return request_of(job).seed is not None
    except ValueError:  # also ValidationError
        return False


def status_of(job: FineTuneJob) -> str:
    """One of OpenAI's words. A job that is paused is `queued`, as there is no word for it."""
    if job.done:
        return "succeeded"
    if job.failed:
        return "failed"
    if CANCELLED_ANNOTATION in job.metadata.annotations:
        return "cancelled"
    return STATUSES.get(job.reason, "running")


def job_object(job: FineTuneJob) -> Object:
    """`fine_tuning.job`."""
    request = request_of(job)
    method, status = request.chosen, status_of(job)
    hyperparameters: Object = dict.fromkeys(("n_epochs", "batch_size", "learning_rate_multiplier"), "auto")
    hyperparameters |= method.hyperparameters.model_dump(exclude_none=True)
    options = {**method.model_dump(mode="json", exclude_none=True).get(method.type, {})}
    progress = job.status.progress
    eta = progress and status == "running" and progress.updated and progress.eta_seconds
    return {
        "object": "fine_tuning.job",
        "id": job.name,
        "created_at": seconds(_created(job)),
        "error": _error(job),
        "fine_tuned_model": job.name if status == "succeeded" else None,
        "finished_at": seconds(finished) if (finished := _finished(job)) else None,
        "estimated_finish": seconds(str(progress.updated)) + int(eta) if progress and eta else None,
        "hyperparameters": {name: hyperparameters[name] for name in list(hyperparameters)[:3]},
        "method": {"type": method.type, method.type: {**options, "hyperparameters": hyperparameters}},
        "model": request.model,
        "organization_id": job.metadata.namespace or "",
        "result_files": [],
        "seed": request.seed,
        "status": status,
        "trained_tokens": None,
        "training_file": request.training_file,
        "validation_file": request.validation_file,
        "metadata": request.metadata or {},
        "integrations": [],
    }


def events(job: FineTuneJob) -> list[Object]:
    """`fine_tuning.job.event`, the newest first. They follow from the status, so that they are the same each time."""
    found = [
        {
            "object": "fine_tuning.job.event",
            "id": "ftevent-" + hashlib.sha256(f"{job.metadata.uid} {key}".encode()).hexdigest()[:24],
            "created_at": seconds(time),
            "level": level,
            "message": message,
            "type": "metrics" if data else "message",
            "data": data,
        }
        for key, time, level, message, data in _events(job)
    ]
    found.reverse()  # of those of one second, too, the later ones come first
    return sorted(found, key=lambda one: -int(one["created_at"]))


def _events(job: FineTuneJob) -> Iterator[tuple[str, str, str, str, Object | None]]:
    """(what tells it apart, time, level, message, data), by time where times are equal."""
    status = job.status
    yield "created", _created(job), "info", f"Created fine-tuning job: {job.name}", None
    for one in status.attempts:
        if one.start_time:
            since = f", from the checkpoint of step {one.resumed_step}" if one.resumed_step else ""
            message = f"Attempt {one.number} began on {one.nodes} node{'s' if one.nodes > 1 else ''}{since}"
            yield f"start {one.number}", one.start_time, "info", message, None
        if one.end_time and one.reason and one.reason != "Completed":
            level = "info" if one.reason == "Suspended" else "warn"
            message = f"Attempt {one.number} ended: {one.reason}" + (f": {one.message}" if one.message else "")
            yield f"end {one.number}", one.end_time, level, message, None
    if status.checkpoint:
        step = status.checkpoint.step
        yield f"checkpoint {step}", status.checkpoint.time, "info", f"Checkpoint of step {step} written", None
    if (progress := status.progress) and progress.updated and progress.step:
        data = {"step": progress.step, "total_steps": progress.total_steps, "train_loss": progress.loss}
        loss = "" if progress.loss is None else f": training loss={progress.loss:.4g}"
        message = f"Step {progress.step}/{progress.total_steps}{loss}"
        yield f"step {progress.step}", progress.updated, "info", message, data
    paused = job.condition("Suspended")
    if cancelled := job.metadata.annotations.get(CANCELLED_ANNOTATION):
        yield "cancelled", cancelled, "info", "The job was cancelled", None
    elif paused and paused.status == "True" and not job.over:
        time = paused.last_transition_time
        yield f"paused {time}", time, "info", "The job is paused: resume goes on from its checkpoint", None
    end: Condition | None = job.condition()
    if end and job.over:
        message = "The job has successfully completed" if job.done else f"{end.reason}: {end.message}"
        yield "over", end.last_transition_time, "info" if job.done else "error", message, None


def checkpoints(job: FineTuneJob) -> list[Object]:
    """`fine_tuning.job.checkpoint`: the newest one, which a resume goes on from."""
    found, progress = job.status.checkpoint, job.status.progress
    if not found:
        return []
    metrics: Object = {"step": found.step}
    if progress and progress.step == found.step and progress.loss is not None:
        metrics["train_loss"] = progress.loss
    return [
        {
            "object": "fine_tuning.job.checkpoint",
            "id": "ftckpt-" + hashlib.sha256(f"{job.metadata.uid} {found.step}".encode()).hexdigest()[:24],
            "created_at": seconds(found.time),
            "fine_tuned_model_checkpoint": found.uri,
            "fine_tuning_job_id": job.name,
            "metrics": metrics,
            "step_number": found.step,
        }
    ]


def made_model(job: FineTuneJob) -> Object:
    """`model`: what a job made."""
    created = seconds(_finished(job) or _created(job))
    return {"id": job.name, "object": "model", "created": created, "owned_by": job.metadata.namespace or ""}


def base_model(name: str) -> Object:
    """`model`: one that may be fine-tuned."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "system"}


def page(items: Sequence[Object], after: str | None, limit: int) -> Object:
    """The items behind `after`. Raises ApiRefusal where it is none of them."""
    begin = 0
    if after is not None:
        places = [place for place, one in enumerate(items) if one["id"] == after]
        if not places:
            raise ApiRefusal(f"No such object: {after}", param="after", code="invalid_value")
        begin = places[0] + 1
    found = items[begin : begin + limit]
    ends = {"first_id": found[0]["id"], "last_id": found[-1]["id"]} if found else {"first_id": None, "last_id": None}
    return {"object": "list", "data": list(found), "has_more": begin + limit < len(items), **ends}


def _error(job: FineTuneJob) -> Object | None:
    end = job.condition()
    if not job.failed or end is None:
        return None
    return {"code": end.reason, "message": end.message, "param": PARAMETERS.get(end.reason)}


def _created(job: FineTuneJob) -> str:
    return job.metadata.creation_timestamp or "1970-01-01T00:00:00Z"


def _finished(job: FineTuneJob) -> str | None:
    return job.status.completion_time or job.metadata.annotations.get(CANCELLED_ANNOTATION)
