"""ZeRO's parts of a checkpoint, for another number of processes: by DeepSpeed's universal checkpoints."""

from __future__ import annotations

import io
import shutil
from argparse import Namespace
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

COMPANIONS = ("trainer_state.json", "scheduler.pt", "value.pt")
"""What is the same for each process: the last is the value that PPO learns (methods/ppo.py)."""


def convert(checkpoint: Path, target: Path) -> None:
    """Write `checkpoint` to the new folder `target` as one that any number of processes can load. The random numbers
    of each process are left out.
    """
    from deepspeed.checkpoint import ds_to_universal

    tag = (checkpoint / "latest").read_text().strip()
    shutil.rmtree(target, ignore_errors=True)
    (target / tag).mkdir(parents=True)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it speaks of every file
        ds_to_universal.main(
            Namespace(
                input_folder=str(checkpoint / tag),
                output_folder=str(target / tag),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=False,  # what is frozen has no optimizer state
                inject_missing_state=True,
            )
        )
    (target / "latest_universal").write_text(tag)
    for name in COMPANIONS:
        if (checkpoint / name).exists():  # DeepSpeed may hold the scheduler itself
            shutil.copyfile(checkpoint / name, target / name)


def expect(trainer: Any) -> None:
    """Make the engine, which is not there yet, load such a checkpoint."""
    trainer.accelerator.state.deepspeed_plugin.deepspeed_config["checkpoint"] = {"load_universal": True}
