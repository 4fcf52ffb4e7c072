"""What is measured of tokens is a sum over tokens divided by their number, whichever rows make a micro-batch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer import processes, test_gkd, test_policy
from trainer.support import ROWS, long, read_log
from trainer.test_evaluation import METHODS, evaluated, evaluations
from trainer.test_gkd import teacher
from tunesmith.training.plan import TrainPlan
from tunesmith_trainer.means import Means
from tunesmith_trainer.train import train

__all__ = ["teacher"]

pytestmark = pytest.mark.trainer

Make = Callable[..., TrainPlan]
LONG = "I am Xiao Huang, developed by ModelScope. " * 3
"""Beside answers of a word."""


def test_each_mean_counts_by_what_it_is_the_mean_of() -> None:
    means, metrics = Means(), {"rows": [1.0], "tokens": [4.0]}
    means.note(metrics, {"tokens": torch.tensor(3)}, 2.0)
    metrics["rows"].append(4.0)
    metrics["tokens"].append(0.0)
    means.note(metrics, {"tokens": torch.tensor(1)}, 1.0)
    metrics["later"] = [5.0, 7.0]
    # Two processes, each with as many tokens.
    means.settle(metrics, lambda counts: counts * 2)
    assert metrics == {"rows": [2.0], "tokens": [3.0], "later": [6.0]}
    metrics.clear()
    metrics["tokens"] = [1.0]
    means.note(metrics, {"tokens": torch.tensor(7)}, 1.0)
    means.settle(metrics, lambda counts: counts)
    assert metrics == {"tokens": [1.0]}


def test_a_value_that_is_no_number_or_counts_nothing_is_left_as_it_is() -> None:
    means, metrics = Means(), {"reward": [math.nan, 2.0], "accuracy": [0.0]}
    means.note(metrics, {"accuracy": torch.tensor(0)}, 1.0)
    means.settle(metrics, lambda counts: counts)
    assert metrics["accuracy"] == [0.0]
    assert metrics["reward"][1:] == [2.0]


def uneven(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of which every other has a long answer, twice as many."""
    names = ("response", "rejected_response", "text")
    longer = [{key: LONG if key in names else value for key, value in row.items()} for row in rows]
    return [one for pair in zip(rows, longer, strict=True) for one in pair]


@pytest.mark.parametrize("name", ["SFT", "DPO", "KTO", *long(("PreTraining",), ("ORPO",), ("RewardModel",))])
def test_metrics_do_not_depend_on_which_rows_make_a_micro_batch(make_plan: Make, tmp_path: Path, name: str) -> None:
    """In the log, over one step and over two, and in evaluations."""
    method, rows, _ = METHODS[name]
    rows, found = uneven(rows), []
    for size in (2, 8):
        options = {"method": method, "rows": rows, "max_steps": 3, "logging_steps": 3, "global_batch_size": 8}
        plan = make_plan(run=f"{name}-{size}", micro_batch_size=size, **options)
        plan = evaluated(plan, rows[:7], tmp_path, every_steps=3)
        train(plan)
        lines = [line["metrics"] for line in (*read_log(plan), *evaluations(plan))]
        found.append([{key: value for key, value in line.items() if value is not None} for line in lines])
    # KTO's divergence is estimated of a micro-batch, and part of its loss; extremes are those of a micro-batch.
    own = {"KTO": {"kl", "loss"}, "RewardModel": {"min_reward", "max_reward"}}.get(name, set())
    assert len(found[0]) == 3
    for one, other in zip(*found, strict=True):
        assert other.keys() == one.keys()
        assert {k: v for k, v in other.items() if k not in own} == pytest.approx(
            {k: v for k, v in one.items() if k not in own}, rel=2e-3, abs=2e-4
        )


@pytest.mark.parametrize("type_", ["GRPO", "PPO", "GKD"])
def test_entropies_do_not_depend_on_which_answers_make_a_micro_batch(
    make_plan: Make, tmp_path: Path, teacher: Path, type_: str
) -> None:
    found = []
    for size in (1, 8):
        if type_ == "GKD":
            rows, how = uneven(ROWS), test_gkd.method(teacher, onPolicy=0, maxCompletionLength=64)
        else:
            rows, rollout = test_policy.ROWS, {"maxCompletionLength": 64}
            how = test_policy.method(tmp_path, type_, rollout=rollout)
        train(plan := make_plan(run=f"by-{size}", rows=rows, method=how, global_batch_size=8, micro_batch_size=size))
        found.append(read_log(plan)[0]["metrics"])
    assert found[0]["completions/min_length"] < found[0]["completions/max_length"], "else nothing is shown"
    assert found[1]["completions/mean_length"] == found[0]["completions/mean_length"]
    assert found[1]["entropy"] == pytest.approx(found[0]["entropy"], rel=1e-5)


@pytest.mark.parametrize("name", ["SFT", *long(("DPO",), ("KTO",))])
def test_processes_count_by_their_tokens_also_at_the_end_of_an_epoch(
    make_plan: Make, tmp_path: Path, name: str
) -> None:
    """Nine rows are no multiple of what two processes take at once."""
    method, rows, _ = METHODS[name]
    rows, found = [*uneven(rows), rows[0]], []
    for world in (1, 2):
        options = {"method": method, "rows": rows, "max_steps": 3, "micro_batch_size": 2, "learning_rate": 1e-2}
        options["processes"] = world
        plan = evaluated(make_plan(run=f"over-{world}", **options), rows[:5], tmp_path, every_steps=3)
        if world == 1:
            train(plan)
        else:
            processes.run(plan, tmp_path)
        found.append([line["metrics"] for line in (*read_log(plan), *evaluations(plan))])
    own = {"kl", "loss"} if name == "KTO" else set()
    for one, other in zip(*found, strict=True):
        assert {k: v for k, v in other.items() if k not in own} == pytest.approx(
            {k: v for k, v in one.items() if k not in own}, rel=2e-3, abs=2e-4
        )


def noting(folder: str) -> None:
    """Each process of a PPO writes down how far its answers are from the reference's, summed, and their tokens."""
    from tunesmith_trainer.methods.ppo import TRAINER

    made, passed = TRAINER._generate_and_score_completions, TRAINER._get_per_token_logps_and_entropies
    kept: list[Any] = []

    def keeping(self: Any, *arguments: Any, **options: Any) -> Any:
        found = passed(self, *arguments, **options)
        kept.append(found[0].detach())
        return found

    def writing(self: Any, inputs: Any) -> Any:
        kept.clear()
        found = made(self, inputs)
        *_, reference, own = kept
        mask = found["completion_mask"]
        line = json.dumps([float(((own - reference) * mask).sum()), int(mask.sum())])
        with Path(folder, f"rank-{self.args.process_index}").open("a") as file:
            file.write(line + "\n")
        return found

    TRAINER._get_per_token_logps_and_entropies = keeping
    TRAINER._generate_and_score_completions = writing


@pytest.mark.long
def test_the_divergence_of_ppo_is_that_of_all_processes_tokens(make_plan: Make, tmp_path: Path) -> None:
    how = test_policy.method(tmp_path, "PPO", rollout={"maxCompletionLength": 64}, klWeight=0.1, iterations=1)
    options = {"processes": 2, "global_batch_size": 8, "max_steps": 2, "learning_rate": 3e-2}
    plan = make_plan(rows=test_policy.ROWS, method=how, **options)
    processes.run(plan, tmp_path, noting, (str(tmp_path),))
    ranks = [[json.loads(line) for line in (tmp_path / f"rank-{n}").read_text().splitlines()] for n in range(2)]
    (one, own), (other, theirs) = ranks[0][1], ranks[1][1]
    assert own != theirs, "else nothing is shown"
    assert read_log(plan)[1]["metrics"]["kl"] == pytest.approx((one + other) / (own + theirs), rel=1e-4)
