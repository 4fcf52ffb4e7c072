"""What rank 0 reports, and what it says at its end, as fields of the status; and whether it stands still."""

from __future__ import annotations

from typing import Any

from tunesmith.api.finetunejob import CheckpointStatus, FineTuneJobSpec, FineTuneJobStatus, Progress
from tunesmith.api.inferencejob import InferenceJobStatus, RowsProgress
from tunesmith.api.mergejob import MergeJobStatus
from tunesmith.training.location import join
from tunesmith.training.plan import InferencePlan, MergePlan, TrainPlan
from tunesmith.training.report import Ending, Report, duration


def training(report: Report, plan: TrainPlan, status: FineTuneJobStatus, stamp: str) -> dict[str, Any]:
    """Of a FineTuneJob that runs."""
    return {
        "progress": progress(report, status.progress, stamp),
        "checkpoint": checkpoint(report, plan, status, stamp),
        "best": report.best,
    }


def trained(ending: Ending, status: FineTuneJobStatus, stamp: str) -> dict[str, Any]:
    """Of a FineTuneJob that is done."""
    found: dict[str, Any] = {"best": ending.best or status.best}
    if status.progress:
        found["progress"] = finished(status.progress, ending.step, stamp)
    return found


def merging(report: Report, plan: MergePlan, status: MergeJobStatus, stamp: str) -> dict[str, Any]:
    """Of a MergeJob that runs: it has no steps."""
    return {}


def merged(ending: Ending, status: MergeJobStatus, stamp: str) -> dict[str, Any]:
    """Of a MergeJob that is done."""
    errors = {"logit_error": ending.logit_error, "quantization_error": ending.quantization_error}
    return {name: None if error is None else float(f"{error:.3g}") for name, error in errors.items()}


def inferring(report: Report, plan: InferencePlan, status: InferenceJobStatus, stamp: str) -> dict[str, Any]:
    """Of an InferenceJob that runs."""
    old = status.progress
    return {"progress": None if old and old.rows == report.step else answered(report, stamp)}


def inferred(ending: Ending, status: InferenceJobStatus, stamp: str) -> dict[str, Any]:
    """Of an InferenceJob that is done."""
    rows = ending.step or 0
    end = Report(step=rows, total_steps=rows, eta_seconds=0)
    done = answered(end, stamp).model_copy(
        update={"rows_per_second": status.progress.rows_per_second if status.progress else None}
    )
    return {"progress": done, "metrics": ending.metrics}


def answered(report: Report, stamp: str) -> RowsProgress:
    """How many rows are answered."""
    return RowsProgress(
        rows=report.step,
        total_rows=report.total_steps,
        rows_per_second=_short(1 / report.step_seconds) if report.step_seconds else None,
        **so_far(report, stamp),
    )


def so_far(report: Report, stamp: str) -> dict[str, Any]:
    """What the progress of every kind says: the part done, and the time left."""
    percent = 100 * report.step // max(1, report.total_steps)
    return {
        "percent": percent,
        "text": f"{report.step}/{report.total_steps} ({percent}%)",
        "eta_seconds": report.eta_seconds,
        "eta": None if report.eta_seconds is None else duration(report.eta_seconds),
        "updated": stamp,
    }


def progress(report: Report, old: Progress | None, stamp: str) -> Progress | None:
    """The progress to write, or None where the old one says the same."""
    if old is not None and (old.step, old.loss) == (report.step, _short(report.loss)):
        return None
    return Progress(
        step=report.step,
        total_steps=report.total_steps,
        loss=_short(report.loss),
        learning_rate=report.learning_rate,
        tokens_per_second=_short(report.tokens_per_second),
        mfu=_short(report.mfu),
        peak_memory_bytes=report.peak_memory_bytes,
        step_seconds=_short(report.step_seconds),
        **so_far(report, stamp),
    )


def finished(old: Progress, step: int | None, stamp: str) -> Progress:
    """The progress of a job that came to its end, by early stopping before its last step."""
    last = step or old.total_steps
    text = f"{last}/{old.total_steps} ({'100%' if last >= old.total_steps else 'stopped early'})"
    end = {"step": last, "percent": 100, "text": text, "eta_seconds": 0, "eta": "0s", "updated": stamp}
    return old.model_copy(update=end)


def checkpoint(report: Report, plan: TrainPlan, status: FineTuneJobStatus, stamp: str) -> CheckpointStatus | None:
    """The newest checkpoint where it is another than the one that the status has."""
    step = report.checkpoint_step
    if not step or (status.checkpoint and status.checkpoint.step == step):
        return None
    return CheckpointStatus(step=step, uri=join(plan.checkpoint.uri, f"checkpoint-{step}"), time=stamp)


def stalled(report: Report | None, spec: FineTuneJobSpec) -> str | None:
    """A message if no step was made for longer than spec.stall allows."""
    if report is None or report.waiting or report.idle_seconds is None:
        return None
    limit = max(float(spec.stall.min_seconds), spec.stall.step_times * (report.step_seconds or 0))
    if report.idle_seconds <= limit:
        return None
    usual = f"; a step usually takes {duration(report.step_seconds)}" if report.step_seconds else ""
    return f"no step since step {report.step}, for {duration(report.idle_seconds)}{usual}"


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
