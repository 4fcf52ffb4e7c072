"""`python -m tunesmith_trainer train|merge|demo-model`. Nothing heavy is imported before the plan is read and the
files that it names are looked at: most errors are told within a second.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError
from tunesmith.training.plan import MergePlan, TrainPlan
from tunesmith.training.report import PLAN_FILE, Ending

from tunesmith_trainer import ending
from tunesmith_trainer.errors import ConfigError
from tunesmith_trainer.inputs import wait_for_inputs

# Models and data are mounted or fetched before this program starts. It reaches no hub and reports to none.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "MPLBACKEND": "Agg",
}

Plan = TypeVar("Plan", TrainPlan, MergePlan)


def read_plan(kind: type[Plan], path: Path) -> Plan:
    """The plan at `path`."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"no plan: {path}: {error.strerror}. The operator mounts it there; or give --plan") from None
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise ConfigError(f"{path} is no plan of a {kind.model_fields['kind'].default}: {found}") from None


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run the command. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="tunesmith_trainer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("train", "train as a FineTuneJob's plan says"), ("merge", "merge as a MergeJob's plan says")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--plan", type=Path, default=Path(PLAN_FILE))
    demo = commands.add_parser("demo-model", help="write the demo's base model, SmolLM2-135M-Instruct")
    demo.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    # It recommends a kernel package, which would be fetched from a hub.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

    def work() -> Ending:
        match chosen.command:
            case "train":
                plan = read_plan(TrainPlan, chosen.plan)
                wait_for_inputs(plan)
                from tunesmith_trainer.train import train

                return train(plan)
            case "merge":
                merge_plan = read_plan(MergePlan, chosen.plan)
                wait_for_inputs(merge_plan)
                from tunesmith_trainer.merge import merge

                return merge(merge_plan)
            case _:
                from tunesmith_trainer.demo import write_demo_model

                write_demo_model(chosen.out)
                return Ending(reason="Completed", message=f"wrote {chosen.out}")

    return ending.run(work)


if __name__ == "__main__":
    sys.exit(main())
