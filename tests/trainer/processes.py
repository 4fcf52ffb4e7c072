"""Trainer processes with torchrun's environment but not its start: they are forked from a server that has imported
what takes long, so that a test of several processes takes seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tunesmith.training.plan import InferencePlan, TrainPlan
from tunesmith.training.report import Ending

COMMANDS = {"FineTuneJob": "train", "InferenceJob": "infer"}
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["trainer.preloaded"])


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def work(
    command: str,
    plan: Path,
    environment: dict[str, str],
    prepare: Callable[..., None] | None,
    options: tuple[Any, ...],
) -> None:
    """One process: the trainer's program."""
    os.environ |= environment
    multiprocessing.current_process().daemon = False  # else it may start no loader's processes
    from tunesmith_trainer.__main__ import main

    with Path(environment["TUNESMITH_TERMINATION_LOG"]).with_suffix(".out").open("w", buffering=1) as out:
        sys.stdout = sys.stderr = out
        if prepare:
            prepare(*options)
        code = main([command, "--plan", str(plan)])
        out.flush()
        os._exit(code)


@dataclass
class Rank:
    """A process of a group, each in a pod of its own."""

    process: ForkServerProcess
    message: Path

    def ending(self) -> Ending | None:
        """How it ended; None: without a word."""
        content = self.message.read_bytes()
        return Ending.model_validate_json(content) if content else None

    def output(self) -> str:
        """What it printed."""
        return self.message.with_suffix(".out").read_text()


def start(
    plan: TrainPlan | InferencePlan,
    folder: Path,
    prepare: Callable[..., None] | None = None,
    options: tuple[Any, ...] = (),
    **environment: str,
) -> list[Rank]:
    """Start the processes of a plan. `prepare(*options)`, a function of a module, is called in each before."""
    path = folder / f"{plan.job.name}-{plan.attempt}.json"
    path.write_text(plan.model_dump_json(by_alias=True))
    port, ranks = str(free_port()), []
    for rank in range(plan.world_size):
        message = folder / f"{plan.job.name}-{plan.attempt}-{rank}"
        message.write_bytes(b"")
        message.with_suffix(".out").touch()
        names = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank), "LOCAL_RANK": "0",
            "WORLD_SIZE": str(plan.world_size), "LOCAL_WORLD_SIZE": "1",
        } if plan.world_size > 1 else {}  # fmt: skip
        environment |= {**names, "TUNESMITH_TERMINATION_LOG": str(message)}
        process = CONTEXT.Process(
            target=work, args=(COMMANDS[plan.kind], path, dict(environment), prepare, options), daemon=True
        )
        process.start()
        ranks.append(Rank(process, message))
    return ranks


def wait(ranks: list[Rank], seconds: float = 120) -> list[int | None]:
    """Exit codes of processes that end within `seconds`; those that do not are killed, and the test fails."""
    for rank in ranks:
        rank.process.join(seconds)
    hanging = [rank for rank in ranks if rank.process.exitcode is None]
    for rank in hanging:
        rank.process.kill()
    assert not hanging, "\n".join(rank.output() for rank in ranks)
    return [rank.process.exitcode for rank in ranks]


def run(plan: TrainPlan | InferencePlan, folder: Path, *arguments: Any, **environment: str) -> list[Rank]:
    """Run the processes of a plan to a good end."""
    ranks = start(plan, folder, *arguments, **environment)
    codes = wait(ranks)
    assert not any(codes), f"{codes}\n" + "\n".join(rank.output() for rank in ranks)
    return ranks
