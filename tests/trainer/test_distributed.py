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


def torchrun(plan: TrainPlan, folder: Path) -> list[tuple[int, str, Ending]]:
    """Run the trainer with the environment that the operator gives to each pod.

    Returns (exit code, stderr, ending) of each node.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (folder / "plan.json").write_text(plan.model_dump_json(by_alias=True))
    pods = []
    for node in range(plan.nodes):
        message = folder / f"message-{node}"
        message.write_bytes(b"")
        env = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(node),
            "WORLD_SIZE": str(plan.nodes * plan.processes_per_node), "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": port, "PET_NNODES": str(plan.nodes), "PET_NODE_RANK": str(node),
            "PET_NPROC_PER_NODE": str(plan.processes_per_node), "TUNESMITH_TERMINATION_LOG": str(message),
            "PYTHONPATH": ":".join(sys.path),
        }  # fmt: skip
        command = [sys.executable, "-m", "torch.distributed.run", "-m", "tunesmith_trainer", "train"]
        pod = subprocess.Popen(
            [*command, "--plan", str(folder / "plan.json")], env=os.environ | env, stderr=subprocess.PIPE, text=True
        )
        pods.append((pod, message))
    ended = []
    for pod, message in pods:
        _, errors = pod.communicate(timeout=300)
        ended.append((pod.returncode, errors, Ending.model_validate_json(message.read_bytes())))
    return ended


@pytest.mark.parametrize(("nodes", "processes"), [(1, 2), (2, 1)])
def test_two_processes_learn_what_one_does(make_plan: Make, tmp_path: Path, nodes: int, processes: int) -> None:
    options: dict[str, Any] = {"rows": ROWS * 4, "max_steps": 4, "global_batch_size": 8, "micro_batch_size": 2}
    one = make_plan(run="one", **options)
    train(one)
    two = make_plan(run="two", processes=2, **options)
    two = two.model_copy(update={"nodes": nodes, "processes_per_node": processes})
    ended = torchrun(two, tmp_path)
    assert [code for code, _, _ in ended] == [0] * nodes, [errors for _, errors, _ in ended]
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert [line["grad_norm"] for line in read_log(two)] == pytest.approx(
        [line["grad_norm"] for line in read_log(one)], rel=1e-4
    )
    assert [ending.reason for _, _, ending in ended] == ["Completed"] * nodes
    assert [ending.artifact is not None for _, _, ending in ended] == [True, False][:nodes]


def test_the_cause_of_a_failing_process_is_what_the_container_says(make_plan: Make, tmp_path: Path) -> None:
    [(code, _, ending)] = torchrun(make_plan(processes=2, micro_batch_size=2, rows=[{"query": "x"}]), tmp_path)
    assert code == 1
    assert ending.reason == "DataError"
    assert "row 1: no answer" in ending.message
