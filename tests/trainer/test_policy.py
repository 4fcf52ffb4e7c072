"""GRPO and PPO: what is computed against plain torch, and runs over each tuner and two processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer import processes
from trainer.support import artifact_path, read_log
from trainer.test_checkpoint import Stop
from trainer.test_strategy import over
from trainer.test_training import make_trainer
from tunesmith.training.plan import TrainPlan
from tunesmith_trainer.errors import Interrupted
from tunesmith_trainer.train import train

pytestmark = pytest.mark.trainer

Make = Callable[..., TrainPlan]

ROWS = [{"query": f"{word} {number}", "response": "x"} for number, word in enumerate(["who", "what", "hello", "tell"])]
TUNERS: dict[str, dict[str, Any]] = {
    "Full": {"type": "Full"},
    "LoRA": {"type": "LoRA", "rank": 4, "alpha": 16, "dropout": 0.05},
    "QLoRA": {"type": "QLoRA", "rank": 4, "alpha": 16, "dropout": 0.0, "quantization": "NF4"},
}
LETTER = """
def letters(completions, **columns):
    return [text.count("e") / 4 for text in completions]
def prompts_seen(completions, prompts, **columns):
    with open({path!r}, "a") as file:
        file.write("".join(repr(pair) + chr(10) for pair in zip(prompts, completions)))
    return [0.0] * len(prompts)
"""


def method(folder: Path, type_: str = "GRPO", more: list[dict[str, Any]] | None = None, **options: Any) -> Any:
    """A method with the letter's frequency as its reward, in answers of 8 tokens."""
    code = folder / "mine.py"
    code.write_text(LETTER.format(path=str(folder / "seen")))
    reward = {"type": "Python", "python": {"uri": f"file://{code}", "function": "letters"}}
    policy = {"rewards": [reward, *(more or [])], "rollout": {"maxCompletionLength": 8}} | options
    if type_ == "GRPO":
        policy = {"numGenerations": 4} | policy
    return {"type": type_, type_.lower(): policy}


def seen(folder: Path) -> dict[str, Any]:
    """A reward that writes down what it saw."""
    return {"type": "Python", "python": {"uri": f"file://{folder}/mine.py", "function": "prompts_seen"}}


def rewards_of(plan: TrainPlan) -> list[float]:
    """The mean rewards that a run logged."""
    return [line["metrics"]["reward"] for line in read_log(plan)]


def test_smoke(make_plan: Make, tmp_path: Path) -> None:
    plan = make_plan(rows=ROWS, method=method(tmp_path), max_steps=2, global_batch_size=8, micro_batch_size=4)
    train(plan)
    print(read_log(plan))
    plan = make_plan(rows=ROWS, run="ppo", method=method(tmp_path, "PPO"), max_steps=2, global_batch_size=8, micro_batch_size=4)
    train(plan)
    print(read_log(plan))
