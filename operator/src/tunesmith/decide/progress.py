"""What rank 0 reports, as fields of the status: progress, the newest checkpoint, and whether it stands still."""

from __future__ import annotations

from tunesmith.api.finetunejob import CheckpointStatus, FineTuneJobSpec, FineTuneJobStatus, Progress
from tunesmith.training.location import join
from tunesmith.training.plan import TrainPlan
from tunesmith.training.report import Report, duration


def progress(report: Report, old: Progress | None, stamp: str) -> Progress | None:
    """The progress to write, or None where the old one says the same."""
    if old is not None and (old.step, old.loss) == (report.step, _short(report.loss)):
        return None
    percent = 100 * report.step // max(1, report.total_steps)
    return Progress(
        step=report.step,
        total_steps=report.total_steps,
        percent=percent,
        text=f"{report.step}/{report.total_steps} ({percent}%)",
        loss=_short(report.loss),
        learning_rate=report.learning_rate,
        tokens_per_second=_short(report.tokens_per_second),
        mfu=_short(report.mfu),
        eta_seconds=report.eta_seconds,
        eta=None if report.eta_seconds is None else duration(report.eta_seconds),
        peak_memory_bytes=report.peak_memory_bytes,
        step_seconds=_short(report.step_seconds),
        updated=stamp,
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
