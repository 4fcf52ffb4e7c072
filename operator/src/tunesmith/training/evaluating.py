"""What an evaluation during the training measures, by method: the metrics that a best checkpoint can be chosen by."""

from __future__ import annotations

from collections.abc import Mapping

from tunesmith.api.dataset import Validation
from tunesmith.api.methods import Method, MethodType

UNMEASURED: frozenset[MethodType] = frozenset({"GRPO", "PPO", "GKD"})
"""Methods that learn from answers of their own, whose metrics are measured at each step."""

REWARDS = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies")
TOKENS = ("entropy", "mean_token_accuracy")
ANSWERS = ("logits/chosen", "logits/rejected", "logps/chosen", "logps/rejected")

METRICS: Mapping[MethodType, tuple[str, ...]] = {
    "PreTraining": TOKENS,
    "SFT": TOKENS,
    "DPO": (*REWARDS, *TOKENS, *ANSWERS),
    "KTO": (*REWARDS[:3], "kl", "entropy", *ANSWERS),
    "CPO": REWARDS,
    "SimPO": REWARDS,
    "ORPO": REWARDS,
    "RewardModel": ("accuracy", "margin", "min_reward", "mean_reward", "max_reward"),
    "Classification": ("accuracy",),
    "Embedding": ("recall@1",),
    "Reranker": ("recall@1",),
}
"""Beside `loss`, which each has."""


def metrics_of(method: Method) -> tuple[str, ...]:
    """Names of what is measured; none of a method that is not evaluated."""
    if method.type in UNMEASURED:
        return ()
    names = METRICS[method.type]
    if method.classification and method.classification.problem == "Regression":
        names = ("mean_absolute_error",)
    if method.embedding and method.embedding.loss != "InfoNCE":
        names = ("mean_absolute_error",) if method.embedding.loss == "Cosine" else ("accuracy",)
    return ("loss", *names)


def asks(validation: Validation | None) -> bool:
    """Whether a spec says more of the evaluation than on which rows."""
    if validation is None:
        return False
    own = validation.every_steps, validation.direction, validation.early_stopping
    return validation.metric != "loss" or any(one is not None for one in own)
