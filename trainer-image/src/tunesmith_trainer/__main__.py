"""The trainer's program. Pods call `train` and `merge`; the other commands are for people, on any machine. Nothing
heavy is imported before the plan is read and the files that it names are looked at: most errors are told within a
second.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import ValidationError
from tunesmith.training.plan import MergePlan, TrainPlan
from tunesmith.training.report import PLAN_FILE, Ending

from tunesmith_trainer import ending
from tunesmith_trainer.errors import ConfigError, Interrupted, TrainerError

# Models and data are mounted or fetched before this program starts. It reaches no hub and reports to none.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "MPLBACKEND": "Agg",
}

Plan = TypeVar("Plan", TrainPlan, MergePlan)

app = typer.Typer(
    name="tunesmith-trainer", help="Fine-tunes language models.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False,
)  # fmt: skip


def read_plan(kind: type[Plan], path: Path) -> Plan:
    """The plan at `path`."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"no plan: {path}: {error.strerror}. The operator mounts it there; or give --plan") from None
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise ConfigError(f"{path} is no plan of a {kind.model_fields['kind'].default}: {found}") from None


def offline() -> None:
    """Reach no hub, and report to none."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    # It recommends a kernel package, which would be fetched from a hub.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def told(work: Callable[[], None]) -> int:
    """Run `work` for a person: failures that are told apart are one line, and the exit code."""
    try:
        work()
    except TrainerError as error:
        print(f"{error.reason}: {error}", file=sys.stderr)
        if isinstance(error, Interrupted):
            print("Run the same command again: it goes on from there", file=sys.stderr)
        return error.exit_code
    return 0


PlanOption = Annotated[Path, typer.Option("--plan", help="The plan, as the operator makes it.")]


@app.command()
def train(path: PlanOption = Path(PLAN_FILE)) -> None:
    """Train as a FineTuneJob's plan says; in a pod."""
    offline()

    def work() -> Ending:
        from tunesmith_trainer.inputs import wait_for_inputs

        plan = read_plan(TrainPlan, path)
        wait_for_inputs(plan)
        from tunesmith_trainer.train import train

        return train(plan)

    raise typer.Exit(ending.run(work))


@app.command()
def merge(path: PlanOption = Path(PLAN_FILE)) -> None:
    """Merge as a MergeJob's plan says; in a pod."""
    offline()

    def work() -> Ending:
        from tunesmith_trainer.inputs import wait_for_inputs

        plan = read_plan(MergePlan, path)
        wait_for_inputs(plan)
        from tunesmith_trainer.merge import merge

        return merge(plan)

    raise typer.Exit(ending.run(work))


@app.command()
def demo_model(out: Annotated[Path, typer.Option(help="The folder to write.")]) -> None:
    """Write the demo's base model, SmolLM2-135M-Instruct."""
    offline()

    def work() -> Ending:
        from tunesmith_trainer.demo import write_demo_model

        write_demo_model(out)
        return Ending(reason="Completed", message=f"wrote {out}")

    raise typer.Exit(ending.run(work))


@app.command()
def run(
    files: Annotated[
        list[Path], typer.Argument(help="YAML files with a FineTuneJob and the ConfigMaps that it names.")
    ],
    name: Annotated[str | None, typer.Option(help="Which FineTuneJob of the files.")] = None,
    claims: Annotated[
        Path, typer.Option(help="Folder with a folder for each claim; what is made goes to its tunesmith-store.")
    ] = Path(),
    from_scratch: Annotated[bool, typer.Option(help="Do not go on from an earlier run's checkpoint.")] = False,
) -> None:
    """Train on this machine, without a cluster. Ctrl-C makes a checkpoint, and the same command goes on from it."""

    def work() -> None:
        from tunesmith_trainer.local.running import run

        made = run(files, name=name, claims=claims, from_scratch=from_scratch, show=True)
        print(f"artefact: {made.path}\nrun: {made.run}")

    raise typer.Exit(told(work))


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run the command. Returns the exit code."""
    try:
        app(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
