"""GRPO: answers to one prompt compete, by trl.GRPOTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer
from tunesmith.training.plan import TrainPlan

from tunesmith_trainer import rewards, rollouts
from tunesmith_trainer.data import Row
from tunesmith_trainer.methods import Prepared
from tunesmith_trainer.methods.causal import TASK, drop_copy, load
from tunesmith_trainer.tokens import Limit

__all__ = ["CONFIG", "TASK", "TRAINER", "load", "prepare"]

CONFIG = GRPOConfig
LOSSES = {"GRPO": "grpo", "DAPO": "dapo", "DrGRPO": "dr_grpo", "BNPO": "bnpo"}


class TRAINER(rollouts.Rewarded, GRPOTrainer):
    """TRL's GRPOTrainer."""

    def __init__(self, plan: TrainPlan, *arguments: Any, **options: Any) -> None:
        assert plan.method.grpo
        self.ANSWERS, self.PASSES = plan.method.grpo.num_generations, plan.method.grpo.iterations
        by_token = plan.method.grpo.importance_sampling == "Token"
        self.BY_TOKEN = ("entropy", "kl", *(rollouts.CLIPPED if by_token else ()))
        super().__init__(plan, *arguments, **options)
        drop_copy(self.model)


def prepare(plan: TrainPlan, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> Prepared:
    """Prompts, and the rewards of the answers to them."""
    policy = plan.method.grpo
    assert policy
    found = rollouts.prompts(rows, tokenizer, Limit.of(plan), policy.rollout.max_completion_length)
    scores = rewards.build(plan.method, found.rows)
    arguments: dict[str, Any] = {
        **rollouts.sampling(policy.rollout),
        **rollouts.unspoken(found, tokenizer),
        "num_generations": policy.num_generations,
        "beta": policy.beta,
        # The ratio makes the divergence's gradient unbiased (arXiv 2512.02556), which holds for ratios by token only.
        "use_bias_correction_kl": policy.importance_sampling == "Token",
        "epsilon": policy.epsilon,
        "epsilon_high": policy.epsilon_high,
        "loss_type": LOSSES[policy.loss],
        "importance_sampling_level": policy.importance_sampling.lower(),
        "scale_rewards": policy.scale_rewards.lower(),
        "num_iterations": policy.iterations,
        "reward_weights": [reward.weight for reward in scores],
    }
    options = {"processing_class": tokenizer, "prompts": found, "rewards": scores}
    return Prepared(found.dataset(), found.summary(), arguments, options)
