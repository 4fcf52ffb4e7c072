"""PPO (arXiv 1707.06347): a learned value says how much better an answer went than expected. On the loop of
trl.GRPOTrainer: its sampling, rewards, clipped ratio and logging.

The value is a linear head on the policy's last hidden states, with an AdamW of its own at the policy's learning rate;
its loss reaches the policy's weights, too. It lies in checkpoints, and is dropped at the end: what is served is the
policy, and engines refuse weights that they do not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer
from tunesmith.training.plan import TrainPlan

from tunesmith_trainer import group, rewards, rollouts
from tunesmith_trainer.data import Row
from tunesmith_trainer.methods import Prepared
from tunesmith_trainer.methods.causal import TASK, drop_copy, load
from tunesmith_trainer.tokens import Limit

__all__ = ["CONFIG", "TASK", "TRAINER", "load", "prepare"]

FILE = "value.pt"


class CONFIG(GRPOConfig):
    """GRPO's, with one answer to each prompt: nothing is compared. GRPO's own check refuses less than two."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.num_generations = 1


def advantages(
    token_rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, discount: float, trace: float
) -> torch.Tensor:
    """Generalised advantages (arXiv 1506.02438) of each token: `mask` is 1 up to an answer's end, after which nothing
    is expected.
    """
    found = torch.zeros_like(values)
    following, value = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    for token in reversed(range(values.shape[1])):
        delta = token_rewards[:, token] + discount * value - values[:, token]
        following = (delta + discount * trace * following) * mask[:, token]
        value = values[:, token] * mask[:, token]
        found[:, token] = following
    return found


class TRAINER(rollouts.Rewarded, GRPOTrainer):
    """GRPOTrainer with advantages per token, and a value that is learned beside."""

    BY_TOKEN = ("entropy", *rollouts.CLIPPED)

    def __init__(self, plan: TrainPlan, *arguments: Any, **options: Any) -> None:
        assert plan.method.ppo
        self.policy = plan.method.ppo
        self.PASSES = self.policy.iterations
        super().__init__(plan, *arguments, **options)
        drop_copy(self.model)
        base: Any = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        width = base.config.get_text_config().hidden_size
        self.head = torch.nn.Linear(width, 1).to(self.args.device)
        torch.nn.init.zeros_(self.head.weight)
        torch.nn.init.zeros_(self.head.bias)
        self.head_optimizer = torch.optim.AdamW(
            self.head.parameters(), lr=self.args.learning_rate, weight_decay=self.args.weight_decay
        )
        self.watching = False
        self.hidden: list[torch.Tensor] = []
        base.base_model.register_forward_hook(self.watch)

    def watch(self, module: Any, inputs: Any, output: Any) -> None:
        """Keep the last hidden states of a pass that values are wanted of."""
        if self.watching:
            self.hidden.append(output.last_hidden_state)

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **options: Any) -> Any:
        self.hidden, self.watching = [], True
        try:
            return super()._get_per_token_logps_and_entropies(*arguments, **options)
        finally:
            self.watching = False

    def values(self, tokens: int) -> torch.Tensor:
        """The value of what stood before each of the last `tokens` tokens, of the pass that was just made."""
        hidden, self.hidden = torch.cat(self.hidden), []
        with torch.autocast(hidden.device.type, enabled=False):
            found: torch.Tensor = self.head(hidden[:, -tokens - 1 : -1].float()).squeeze(-1)
        return found

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
        found = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        begin = self.args.process_index * len(prompts)
        own = found[begin : begin + len(prompts)]
        self.terminal = (own * self.reward_weights.to(own.device)).nansum(dim=1)
        self.judged = ~own.isnan().all(dim=1)
        return found

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        made = super()._generate_and_score_completions(inputs)
        ids, mask = made["completion_ids"], made["completion_mask"]
        with torch.no_grad():
            old, _, _ = self._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([made["prompt_ids"], ids], dim=1),
                torch.cat([made["prompt_mask"], mask], dim=1),
                ids.shape[1],
                batch_size=self.args.per_device_train_batch_size,
            )
            values = self.values(ids.shape[1]) * mask
        made["old_per_token_logps"] = old
        token_rewards = torch.zeros_like(values)
        if "ref_per_token_logps" in made:
            away = (old - made.pop("ref_per_token_logps")) * mask
            token_rewards -= self.policy.kl_weight * away
            sums = self.accelerator.reduce(torch.stack([away.sum(), mask.sum().to(away.dtype)]), "sum")
            self._metrics["train"]["kl"].append(float(sums[0] / sums[1].clamp(min=1)))
            self.means["train"].note({"kl": self._metrics["train"]["kl"]}, {"kl": mask.sum()}, 1.0)
        last = mask.sum(dim=1).long() - 1
        token_rewards[torch.arange(len(last), device=last.device), last] += self.terminal
        found = advantages(token_rewards, values, mask, self.policy.discount, self.policy.gae_lambda)
        made["advantages"] = found * self.judged.unsqueeze(1)
        made["values"], made["returns"] = values, made["advantages"] + values
        for name in ("reward_std", "frac_reward_zero_std"):  # of groups
            self._metrics["train"].pop(name, None)
        return made

    def mean(self, value: torch.Tensor) -> float:
        """The mean of a number over the processes."""
        return float(self.accelerator.gather(value.detach()).float().mean())

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        beta, self.beta = self.beta, 0.0  # the divergence is in the rewards
        try:
            loss: torch.Tensor = super()._compute_loss(model, inputs)
        finally:
            self.beta = beta
        mask, old, aim = inputs["completion_mask"], inputs["values"], inputs["returns"]
        values = self.values(mask.shape[1])
        clipped = old + (values - old).clamp(-self.policy.value_epsilon, self.policy.value_epsilon)
        errors = torch.maximum((values - aim) ** 2, (clipped - aim) ** 2) / 2
        # As the policy's loss: each token of the global batch alike.
        tokens = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
        value_loss = (errors * mask).sum() / tokens
        self._metrics["train"]["value_loss"].append(self.mean(value_loss) * self.current_gradient_accumulation_steps)
        return loss + self.policy.value_weight * value_loss

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """The head's step follows the last micro-batch."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self.step_head()
        return loss

    def step_head(self) -> None:
        """One step of the value's weights, by the mean gradient of all processes."""
        parameters = list(self.head.parameters())
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if group.several():
                distributed.all_reduce(parameter.grad)
                parameter.grad /= self.args.world_size
        if self.args.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(parameters, self.args.max_grad_norm)
        for options in self.head_optimizer.param_groups:
            options["lr"] = self._get_learning_rate()
        self.head_optimizer.step()
        self.head_optimizer.zero_grad()

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if group.is_first():
            state = {"head": self.head.state_dict(), "optimizer": self.head_optimizer.state_dict()}
            torch.save(state, Path(output_dir) / FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            state = torch.load(Path(checkpoint, FILE), map_location="cpu", weights_only=True)
            self.head.load_state_dict(state["head"])
            self.head_optimizer.load_state_dict(state["optimizer"])


def prepare(plan: TrainPlan, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> Prepared:
    """Prompts, and the rewards of the answers to them."""
    policy = plan.method.ppo
    assert policy
    found = rollouts.prompts(rows, tokenizer, Limit.of(plan), policy.rollout.max_completion_length)
    scores = rewards.build(plan.method, found.rows)
    arguments: dict[str, Any] = {
        **rollouts.sampling(policy.rollout),
        **rollouts.unspoken(found, tokenizer),
        "beta": policy.kl_weight,
        "epsilon": policy.epsilon,
        "loss_type": "dapo",
        "num_iterations": policy.iterations,
        "num_generations": plan.training.global_batch_size,  # until it was checked
        "reward_weights": [reward.weight for reward in scores],
    }
    options = {"processing_class": tokenizer, "prompts": found, "rewards": scores}
    return Prepared(found.dataset(), found.summary(), arguments, options)
