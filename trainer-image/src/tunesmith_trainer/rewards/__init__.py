"""Rewards: what an answer to a prompt is worth. All of them see text and ids, none sees a tensor of the policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tunesmith.api.methods import Reward as Options
from tunesmith.api.methods import Rollout
from tunesmith.training.plan import MethodPlan, Place

from tunesmith_trainer.data import Row
from tunesmith_trainer.errors import DataError
from tunesmith_trainer.rewards.answers import Answers, Scores
from tunesmith_trainer.rewards.called import Function, Http
from tunesmith_trainer.rewards.model import Model
from tunesmith_trainer.rewards.rules import ANSWER, Cosine, SoftOverlong, accuracy, has_format, repetition

__all__ = ["Answers", "Http", "Model", "Reward", "build"]


@dataclass
class Reward:
    """One reward, with its weight in the sum."""

    name: str
    weight: float
    score: Callable[[Answers], Scores]

    def __call__(self, rows: Sequence[Row], prompts: list[str], completions: list[str], ids: list[list[int]]) -> Scores:
        """The scores of some answers."""
        return self.score(Answers(rows, prompts, completions, ids))


def build(method: MethodPlan, rows: Sequence[Row]) -> list[Reward]:
    """The rewards of a method. Raises what can be said before a model is loaded."""
    name: Literal["grpo", "ppo"] = "grpo" if method.grpo else "ppo"
    policy = method.grpo or method.ppo
    assert policy
    rewards: list[Reward] = []
    for number, options in enumerate(policy.rewards):
        field = f"spec.method.{name}.rewards[{number}]"
        title = options.python.function if options.python else options.type.lower()
        taken = sum(reward.name.split("-")[0] == title for reward in rewards)
        score = scorer(options, field, policy.rollout, method.models, rows)
        rewards.append(Reward(f"{title}-{taken + 1}" if taken else title, options.weight, score))
    return rewards


def scorer(
    options: Options, field: str, rollout: Rollout, models: dict[str, Place], rows: Sequence[Row]
) -> Callable[[Answers], Scores]:
    """What carries out a reward's options."""
    longest = rollout.max_completion_length
    if options.type in ("Accuracy", "Cosine"):
        for row in rows:
            if not isinstance(row.extra.get(ANSWER), str | int | float):
                raise DataError(
                    f"{row.where}: no {ANSWER}: found columns {list(row.extra)} beside the prompt; reward "
                    f"{options.type} ({field}) compares answers with the text or number in {ANSWER}"
                )
    match options.type:
        case "Accuracy":
            return accuracy
        case "Format":
            return has_format
        case "Cosine":
            return Cosine(longest)
        case "Repetition":
            return repetition
        case "SoftOverlong":
            return SoftOverlong(longest)
        case "Python":
            assert options.python
            return Function(options.python, field)
        case "HTTP":
            assert options.http
            return Http(options.http, field)
        case "Model":
            return Model(models[f"{field}.model"], field)
