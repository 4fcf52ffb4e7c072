"""An interrupted run, once resumed, is the uninterrupted one: to the last digit, but where a test says otherwise."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer import processes
from trainer.support import ROWS, long, losses, read_log
from trainer.test_checkpoint import Stop, steps
from trainer.test_strategy import over
from trainer.test_tuners import peft
from tunesmith.training.plan import TrainPlan
from tunesmith.training.report import Ending
from tunesmith_trainer.errors import Interrupted
from tunesmith_trainer.train import train

pytestmark = pytest.mark.trainer

Make = Callable[..., TrainPlan]

# 10 rows in steps of 4: an epoch ends at step 3, within which the runs are interrupted.
OPTIONS: dict[str, Any] = {
    "rows": (ROWS * 3)[:10], "max_steps": 7, "micro_batch_size": 2, "warmup_ratio": 0.3, "scheduler": "Cosine",
    "checkpoint": {"every_steps": 2, "keep": 2},
}  # fmt: skip
TUNERS: dict[str, dict[str, Any]] = {
    "Full": {"type": "Full"}, "LoRA": {"type": "LoRA", "rank": 4, "alpha": 16, "dropout": 0.2},
    "QLoRA": {"type": "QLoRA", "rank": 4, "alpha": 16, "dropout": 0.2, "quantization": "NF4"},
}  # fmt: skip
# Of which an adapter's file is made: of ranks that are left (after step 4), of prompts that an encoder gives.
MADE: dict[str, dict[str, Any]] = {
    "AdaLoRA": peft("AdaLoRA", tfinal=3), "PTuning": peft("PTuning"),
    "PrefixTuning": peft("PrefixTuning", prefix_projection=True, encoder_hidden_size=32),
}  # fmt: skip
TUNERS |= MADE
STEPS = [1, 2, 3, 4, 5, 6, 7]

Whole = tuple[Ending | None, list[tuple[Any, ...]]]


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, Whole]:
    """By strategy, how a run of two processes ends, and what it logs."""
    return {}


def act_after(step: int, rank: str, number: int) -> None:
    """On one rank a signal comes when a step was made."""
    from tunesmith_trainer.progress import Reporter

    before = Reporter.on_step_end

    def on_step_end(self: Reporter, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        before(self, args, state, control, **kwargs)
        if state.global_step == step and os.environ.get("RANK", "0") == rank:
            os.kill(os.getpid(), number)

    Reporter.on_step_end = on_step_end  # type: ignore[method-assign]


def log(plan: TrainPlan) -> list[tuple[Any, ...]]:
    """What was logged of the steps, time and memory apart."""
    keys = ("step", "epoch", "loss", "grad_norm", "learning_rate")
    return [tuple(line[key] for key in keys) for line in read_log(plan)]


@pytest.mark.filterwarnings("ignore:Adapter '")  # PEFT about modules of which no rank is left
@pytest.mark.parametrize("tuner", ["Full", "LoRA", *MADE])
def test_one_process_stopped_by_sigterm(make_plan: Make, monkeypatch: pytest.MonkeyPatch, tuner: str) -> None:
    whole, plan = (make_plan(run=run, tuner=TUNERS[tuner], **OPTIONS) for run in ("whole", "broken"))
    expected = train(whole)
    with monkeypatch.context() as patch:
        Stop(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted, match="at step 5, after a checkpoint of it") as caught:
            train(plan)
    assert (caught.value.step, caught.value.checkpoint_step) == (5, 5)
    assert [line[0] for line in log(plan)] == [1, 2, 3, 4, 5]
    found = train(plan.model_copy(update={"attempt": 2}))
    assert log(plan) == log(whole)
    assert [line[0] for line in log(plan)] == STEPS
    assert found.artifact
    assert expected.artifact
    assert found.artifact.digest == expected.artifact.digest


TERM, KILL = signal.SIGTERM, signal.SIGKILL


@pytest.mark.parametrize(
    ("name", "tuner", "number"),
    [
        ("DDP", "LoRA", TERM), ("ZeRO2", "LoRA", KILL), ("ZeRO3", "Full", TERM),
        *long(
            ("DDP", "LoRA", KILL), ("ZeRO1", "Full", TERM), ("ZeRO1", "Full", KILL), ("ZeRO2", "LoRA", TERM),
            ("ZeRO3", "Full", KILL), ("FSDP2", "Full", TERM), ("FSDP2", "Full", KILL), ("FSDP2", "QLoRA", TERM),
            ("FSDP2", "QLoRA", KILL),
        ),
    ],
)  # fmt: skip
def test_two_processes_one_of_which_gets_a_signal(
    make_plan: Make, tmp_path: Path, uninterrupted: dict[str, Whole], name: str, tuner: str, number: signal.Signals
) -> None:
    whole, plan = (
        over(make_plan(run=run, tuner=TUNERS[tuner], processes=2, **OPTIONS), name) for run in ("whole", "broken")
    )
    if name + tuner not in uninterrupted:
        uninterrupted[name + tuner] = processes.run(whole, tmp_path)[0].ending(), log(whole)
    expected, lines = uninterrupted[name + tuner]
    ranks = processes.start(plan, tmp_path, act_after, (5, "1", number))
    codes = processes.wait(ranks)
    if number == signal.SIGTERM:
        assert codes == [143, 143], ranks[0].output()
        for rank in ranks:
            ending = rank.ending()
            assert ending
            assert (ending.reason, ending.step, ending.checkpoint_step) == ("Interrupted", 5, 5)
        assert steps(Path(plan.checkpoint.path)) == [4, 5]
    else:
        assert codes == [69, -signal.SIGKILL], ranks[0].output()
        ending = ranks[0].ending()
        assert ending
        assert (ending.reason, ending.step, ending.checkpoint_step) == ("PeerLost", 5, 4)
        assert steps(Path(plan.checkpoint.path)) == [2, 4]
    found = processes.run(plan.model_copy(update={"attempt": 2}), tmp_path)[0].ending()
    assert found
    assert found.artifact
    assert expected
    assert expected.artifact
    assert log(plan) == lines
    assert [line[0] for line in log(plan)] == STEPS
    assert found.artifact.digest == expected.artifact.digest


@pytest.mark.parametrize(
    ("name", "tuner", "before", "after"),
    [
        ("DDP", "Full", 2, 1), ("ZeRO3", "Full", 1, 2),
        *long(
            ("DDP", "Full", 1, 2), ("ZeRO1", "Full", 2, 1), ("ZeRO2", "Plain", 1, 2), ("ZeRO3", "Plain", 2, 1),
            ("FSDP2", "Full", 2, 4),
        ),
    ],
)  # fmt: skip
def test_a_run_goes_on_with_another_number_of_processes(
    make_plan: Make, tmp_path: Path, name: str, tuner: str, before: int, after: int
) -> None:
    """The same rows in the same steps, learning rates and epochs; losses and gradients to rounding, since the sums
    are taken in another order. (Dropout is not the same: each process draws its own.)
    """
    options = OPTIONS | {"tuner": TUNERS["Full"] if tuner == "Full" else TUNERS["LoRA"] | {"dropout": 0.0}}
    options["micro_batch_size"] = 4 // max(before, after)
    whole = make_plan(run="whole", **options)
    train(whole)
    first, second = (over(make_plan(run="changed", processes=count, **options), name) for count in (before, after))
    ranks = processes.start(first, tmp_path, act_after, (5, "0", signal.SIGTERM))
    assert processes.wait(ranks) == [143] * before
    [again, *_] = processes.run(second.model_copy(update={"attempt": 2}), tmp_path)
    assert "resuming from checkpoint-5" in again.output()
    assert losses(second) == pytest.approx(losses(whole), rel=3e-5)
    for found, wanted in zip(log(second), log(whole), strict=True):
        assert (found[0], found[1], found[4]) == (wanted[0], wanted[1], wanted[4])
        assert found[3] == pytest.approx(wanted[3], rel=1e-4)
    assert not list(Path(second.checkpoint.path).glob(".writing-*"))
