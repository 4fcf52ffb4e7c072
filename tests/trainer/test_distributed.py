"""Several processes, started by torchrun as the operator does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from trainer.processes import free_port
from trainer.support import ROWS, losses, read_log
from trainer.test_checkpoint import steps
from tunesmith.training.plan import TrainPlan
from tunesmith.training.report import Ending
from tunesmith_trainer.train import train

pytestmark = pytest.mark.trainer

Make = Callable[..., TrainPlan]


@dataclass
class Pod:
    """What the operator starts on one node."""

    process: subprocess.Popen[str]
    message: Path

    def end(self) -> tuple[int, str, Ending]:
        """(exit code, stderr, ending)."""
        _, errors = self.process.communicate(timeout=300)
        return self.process.returncode, errors, Ending.model_validate_json(self.message.read_bytes())


def start(plan: TrainPlan, folder: Path, program: str = "tunesmith_trainer", **environment: str) -> list[Pod]:
    """Start the trainer with the environment that the operator gives to each pod."""
    port = str(free_port())
    (folder / "plan.json").write_text(plan.model_dump_json(by_alias=True))
    pods = []
    for node in range(plan.nodes):
        message = folder / f"message-{node}"
        message.write_bytes(b"")
        env = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(node), "WORLD_SIZE": str(plan.world_size),
            "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port, "PET_NNODES": str(plan.nodes),
            "PET_NODE_RANK": str(node), "PET_NPROC_PER_NODE": str(plan.processes_per_node),
            "TUNESMITH_TERMINATION_LOG": str(message),
        }  # fmt: skip
        command = [sys.executable, "-m", "torch.distributed.run", "-m", program, "train"]
        pod = subprocess.Popen(
            [*command, "--plan", str(folder / "plan.json")],
            env=os.environ | env | environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        pods.append(Pod(pod, message))
    return pods


def torchrun(plan: TrainPlan, folder: Path) -> list[tuple[int, str, Ending]]:
    """Run the trainer to its end: (exit code, stderr, ending) of each node."""
    return [pod.end() for pod in start(plan, folder)]


def test_two_nodes_learn_what_one_does(make_plan: Make, tmp_path: Path) -> None:
    options: dict[str, Any] = {"rows": ROWS * 4, "max_steps": 4, "global_batch_size": 8, "micro_batch_size": 2}
    one = make_plan(run="one", **options)
    train(one)
    two = make_plan(run="two", processes=2, **options)
    two = two.model_copy(update={"nodes": 2, "processes_per_node": 1})
    ended = torchrun(two, tmp_path)
    assert [code for code, _, _ in ended] == [0, 0], [errors for _, errors, _ in ended]
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert [line["grad_norm"] for line in read_log(two)] == pytest.approx(
        [line["grad_norm"] for line in read_log(one)], rel=1e-4
    )
    assert [ending.reason for _, _, ending in ended] == ["Completed"] * 2
    assert [ending.artifact is not None for _, _, ending in ended] == [True, False]


def test_the_cause_of_a_failing_process_is_what_the_container_says(make_plan: Make, tmp_path: Path) -> None:
    [(code, _, ending)] = torchrun(make_plan(processes=2, micro_batch_size=2, rows=[{"query": "x"}]), tmp_path)
    assert code == 1
    assert ending.reason == "DataError"
    assert "row 1: no answer" in ending.message


@pytest.mark.long
def test_sigterm_gives_a_slow_step_the_time_that_the_environment_says(make_plan: Make, tmp_path: Path) -> None:
    """Torchrun hands SIGTERM on, and kills after TORCH_ELASTIC_SHUTDOWN_TIMEOUT (30 s, unless the operator sets it)."""
    plan = make_plan(processes=2, micro_batch_size=2, max_steps=3)
    marker = tmp_path / "in-step-2"
    [pod] = start(plan, tmp_path, "trainer.slow", SLOW_MARKER=str(marker), TORCH_ELASTIC_SHUTDOWN_TIMEOUT="60")
    wait_for(marker)
    pod.process.send_signal(signal.SIGTERM)
    code, errors, ending = pod.end()
    assert code != 0
    assert (ending.reason, ending.step, ending.checkpoint_step) == ("Interrupted", 2, 2), errors
    assert steps(Path(plan.checkpoint.path)) == [2]


def test_sigterm_before_the_training_ends_it_at_once(make_plan: Make, tmp_path: Path) -> None:
    plan = make_plan(processes=2, micro_batch_size=2)
    absent = plan.model.model_copy(update={"path": str(tmp_path / "absent")})
    [pod] = start(plan.model_copy(update={"model": absent}), tmp_path, "trainer.slow", SLOW_MARKER=str(tmp_path / "up"))
    wait_for(tmp_path / "up")
    time.sleep(1)
    began = time.monotonic()
    pod.process.send_signal(signal.SIGTERM)
    _, _, ending = pod.end()
    assert time.monotonic() - began < 25
    assert ending.reason == "Interrupted"
    assert ending.step is None


def wait_for(path: Path) -> None:
    """Return once a file is there."""
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.1)
