"""Experiment trackers of spec.training.reportTo, by transformers' callbacks. Rank 0 alone reports."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import MLflowCallback, SwanLabCallback, TensorBoardCallback, WandbCallback
from tunesmith.training.plan import TrackerPlan, TrainPlan

from tunesmith_trainer.ending import own_rank
from tunesmith_trainer.errors import ConfigError

FOLDER = "trackers"
"""In the run's folder: what is not sent to a server."""


def _flush_mlflow() -> None:
    """Wait for the metrics on their way, and end the run."""
    mlflow: Any = import_module("mlflow")
    mlflow.flush_async_logging()
    mlflow.end_run()


def _begin_swanlab(tracker: TrackerPlan, name: str) -> None:
    """Begin the run. The callback asks for the run that there may be, which SwanLab 0.10 refuses where none is."""
    import_module("swanlab").init(project=tracker.project, name=name)


@dataclass(frozen=True)
class Kind:
    """How a tracker is told what the plan says: by the variables that its library and its callback read."""

    library: str
    callback: Callable[[], TrainerCallback]
    keys: dict[str, str]
    """By key of the Secret, the variable."""
    folder: str
    project: str | None = None
    url: str | None = None
    offline: str | None = None
    """The variable of the mode."""
    always: tuple[tuple[str, str], ...] = ()
    begin: Callable[[TrackerPlan, str], None] | None = None
    """Called with the name of the run before the callback."""
    finish: Callable[[], Any] | None = None


KINDS = {
    "TensorBoard": Kind("tensorboard", TensorBoardCallback, {}, "TENSORBOARD_LOGGING_DIR"),
    "WandB": Kind(
        "wandb", WandbCallback, {"apiKey": "WANDB_API_KEY"}, "WANDB_DIR", "WANDB_PROJECT", "WANDB_BASE_URL",
        "WANDB_MODE",
        (("WANDB_SILENT", "true"), ("WANDB_CONSOLE", "off"), ("WANDB_DISABLE_CODE", "true"),
         ("WANDB_DISABLE_GIT", "true"), ("WANDB_ERROR_REPORTING", "false"), ("WANDB_LOG_MODEL", "false")),
        finish=lambda: import_module("wandb").finish(),
    ),
    "SwanLab": Kind(
        "swanlab", SwanLabCallback, {"apiKey": "SWANLAB_API_KEY"}, "SWANLAB_LOG_DIR",
        url="SWANLAB_API_HOST", offline="SWANLAB_MODE", begin=_begin_swanlab,
        finish=lambda: import_module("swanlab").finish(),
    ),
    "MLflow": Kind(
        "mlflow", MLflowCallback,
        {"token": "MLFLOW_TRACKING_TOKEN", "username": "MLFLOW_TRACKING_USERNAME",
         "password": "MLFLOW_TRACKING_PASSWORD"},
        "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_TRACKING_URI",
        # Without a server runs are files, which MLflow wants to be asked for.
        always=(("MLFLOW_ALLOW_FILE_STORE", "true"), ("HF_MLFLOW_LOG_ARTIFACTS", "false"),
                # A server that is away is not waited for by all other processes.
                ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3"), ("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")),
        finish=_flush_mlflow,
    ),
}  # fmt: skip


def variables(tracker: TrackerPlan, run: Path) -> dict[str, str]:
    """The variables of the environment for a tracker of a run, its credentials among them."""
    kind = KINDS[tracker.type]
    found = dict(kind.always)
    found[kind.folder] = str(run / FOLDER / tracker.type.lower())
    if kind.project:
        found[kind.project] = tracker.project
    if kind.url and tracker.url:
        found[kind.url] = tracker.url
    if kind.offline:
        found[kind.offline] = "online" if tracker.secret else "offline"
    if tracker.secret:
        found |= credentials(tracker.type, Path(tracker.secret))
    return found


def credentials(tracker: str, folder: Path) -> dict[str, str]:
    """The credentials in a folder, or, without a cluster, where there is no such folder, in the environment."""
    keys = KINDS[tracker].keys
    if folder.is_dir():
        found = {
            variable: (folder / key).read_text().strip() for key, variable in keys.items() if (folder / key).is_file()
        }
        wanted = f"Secret {folder.name} has none of the keys {', '.join(keys)}: add what {tracker} wants"
    else:
        found = {variable: os.environ[variable] for variable in keys.values() if variable in os.environ}
        wanted = f"set {' or '.join(keys.values())}, which stands here for the Secret {folder.name}"
    if not any(found.values()):
        raise ConfigError(f"spec.training.reportTo: {wanted}")
    return found


class Trackers(TrainerCallback):
    """The trackers of a plan. One that fails is said and left out from then on: it is not worth a training."""

    def __init__(self, plan: TrainPlan) -> None:
        self.plan = plan
        self.callbacks: dict[str, TrainerCallback] = {}
        run = Path(plan.output.run)
        first = own_rank() == 0
        for tracker in plan.training.report_to if first else []:
            kind = KINDS[tracker.type]
            if find_spec(kind.library) is None:
                raise ConfigError(
                    f"spec.training.reportTo: {tracker.type} needs the package {kind.library}, which is not installed: "
                    "use our trainer image, or install tunesmith-trainer[trackers]"
                )
            os.environ.update(variables(tracker, run))
            (run / FOLDER / tracker.type.lower()).mkdir(parents=True, exist_ok=True)
            self.callbacks[tracker.type] = kind.callback()

    def _each(self, call: Callable[[str], Any]) -> None:
        """Call with the type of each tracker that is left."""
        for name in list(self.callbacks):
            try:
                call(name)
            except Exception as error:
                self.callbacks.pop(name)
                print(f"{name} gets no more reports: {type(error).__name__}: {error}", flush=True)

    def _call(self, event: str, *arguments: Any, **more: Any) -> None:
        self._each(lambda name: getattr(self.callbacks[name], event)(*arguments, **more))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the runs."""
        trackers: dict[str, TrackerPlan] = {one.type: one for one in self.plan.training.report_to}

        def begin(name: str) -> None:
            if own := KINDS[name].begin:
                own(trackers[name], self.plan.job.name)

        self._each(begin)
        self._call("on_train_begin", args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Metrics of a step, or of an evaluation."""
        self._call("on_log", args, state, control, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last step was made."""
        self._call("on_train_end", args, state, control, **kwargs)

    def close(self) -> None:
        """Wait until all is written or sent."""

        def finish(name: str) -> None:
            if own := KINDS[name].finish:
                own()

        self._each(finish)
        self.callbacks.clear()
