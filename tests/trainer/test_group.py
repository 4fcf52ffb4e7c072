"""What several processes do when one of them does not."""

from __future__ import annotations

import json
import math
import os
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer import processes
from trainer.support import ROWS, losses
from trainer.test_checkpoint import steps
from trainer.test_resume import act_after
from tunesmith.training.plan import TrainPlan

pytestmark = pytest.mark.trainer

Make = Callable[..., TrainPlan]

OPTIONS: dict[str, Any] = {
    "rows": ROWS * 2, "max_steps": 6, "micro_batch_size": 2, "processes": 2, "checkpoint": {"every_steps": 1},
}  # fmt: skip


def stopped_peer(port: int) -> None:
    """Rank 1 is there, but does nothing any more after step 3."""
    from tunesmith_trainer import train

    train.PORT = port
    act_after(3, "1", signal.SIGSTOP)


def test_a_peer_that_hangs_is_waited_for_no_longer_than_the_timeout(make_plan: Make, tmp_path: Path) -> None:
    plan, port = make_plan(**OPTIONS), processes.free_port()
    seconds = 6
    first, second = processes.start(
        plan, tmp_path, stopped_peer, (port,), TUNESMITH_COLLECTIVE_TIMEOUT_SECONDS=str(seconds)
    )
    seen: list[dict[str, Any]] = []
    end = time.monotonic() + 60
    while first.process.exitcode is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/progress", timeout=2) as answer:
                seen.append(json.load(answer))
        except OSError:
            pass
        first.process.join(0.3)
    second.process.kill()
    assert processes.wait([first, second]) == [73, -signal.SIGKILL]
    ending = first.ending()
    assert ending
    assert (ending.reason, ending.step, ending.checkpoint_step) == ("CollectiveTimeout", 3, 2)
    assert "one of them hangs" in ending.message
    # Served while the step hung: the time since the last step grew, the step did not.
    hung = [report["idleSeconds"] for report in seen if report["step"] == 3]
    assert hung == sorted(hung)
    assert seconds - 2 < hung[-1] < seconds + 4
    assert seen[-1]["checkpointStep"] == 2
    assert 0 < seen[-1]["stepSeconds"] < 3


def not_a_number(rank: str, number: float) -> None:
    """On one rank the third step's loss is no number."""
    from tunesmith_trainer.methods import supervised

    compute = supervised.TRAINER.compute_loss

    def compute_loss(self: Any, *arguments: Any, **options: Any) -> Any:
        loss = compute(self, *arguments, **options)
        return loss * number if self.state.global_step == 2 and os.environ["RANK"] == rank else loss

    supervised.TRAINER.compute_loss = compute_loss  # type: ignore[method-assign]


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_loss_that_is_no_number_on_one_rank_ends_all_at_that_step(
    make_plan: Make, tmp_path: Path, number: float
) -> None:
    plan = make_plan(**OPTIONS, logging_steps=5)
    ranks = processes.start(plan, tmp_path, not_a_number, ("1", number))
    assert processes.wait(ranks) == [71, 71]
    for rank in ranks:
        ending = rank.ending()
        assert ending
        assert (ending.reason, ending.step, ending.checkpoint_step) == ("LossDiverged", 3, 2)
        assert "spec.training.learningRate" in ending.message
    assert steps(Path(plan.checkpoint.path)) == [1, 2]
    assert len(losses(plan)) == 1


def test_sigterm_ends_a_process_that_waits_for_peers(make_plan: Make, tmp_path: Path) -> None:
    plan = make_plan(**OPTIONS)
    first, second = processes.start(plan, tmp_path, late, ())
    while "rows" not in first.output():
        time.sleep(0.1)
    time.sleep(1)  # it is in torch's C++ now, which nothing can interrupt
    began = time.monotonic()
    assert first.process.pid
    os.kill(first.process.pid, signal.SIGTERM)
    assert processes.wait([first]) == [143]
    assert time.monotonic() - began < 25
    ending = first.ending()
    assert ending
    assert ending.reason == "Interrupted"
    second.process.kill()
    processes.wait([second])


def late() -> None:
    """Rank 1 does not come."""
    if os.environ["RANK"] == "1":
        time.sleep(600)
