"""Several processes, started by torchrun as the operator does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer.support import ROWS, losses, read_log
from tunesmith.training.plan import TrainPlan
from tunesmith.training.report import Ending
from tunesmith_trainer.train import train

pytestmark = pytest.mark.trainer

Make = Callable[..., TrainPlan]


def torchrun(plan: TrainPlan, folder: Path, processes: int) -> tuple[subprocess.CompletedProcess[str], Ending]:
    """Run the trainer in `processes` processes of one node."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "plan.json").write_text(plan.model_dump_json(by_alias=True))
    message = folder / "message"
    message.write_bytes(b"")
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(processes)]
    command += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    done = subprocess.run(
        [*command, "-m", "tunesmith_trainer", "train", "--plan", str(folder / "plan.json")],
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "TUNESMITH_TERMINATION_LOG": str(message), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done, Ending.model_validate_json(message.read_bytes())


def test_two_processes_learn_what_one_does(make_plan: Make, tmp_path: Path) -> None:
    options: dict[str, Any] = {"rows": ROWS * 4, "max_steps": 4, "global_batch_size": 8, "micro_batch_size": 2}
    one = make_plan(run="one", **options)
    train(one)
    two = make_plan(run="two", processes=2, **options)
    done, ending = torchrun(two, tmp_path, 2)
    assert done.returncode == 0, done.stderr
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert [line["grad_norm"] for line in read_log(two)] == pytest.approx(
        [line["grad_norm"] for line in read_log(one)], rel=1e-4
    )
    assert ending.reason == "Completed"
    assert ending.artifact


def test_the_cause_of_a_failing_process_is_what_the_container_says(make_plan: Make, tmp_path: Path) -> None:
    done, ending = torchrun(make_plan(processes=2, micro_batch_size=2, rows=[{"query": "x"}]), tmp_path, 2)
    assert done.returncode == 1
    assert ending.reason == "DataError"
    assert "row 1: no answer" in ending.message
