"""CPO, SimPO and ORPO: preferences without a reference model. (TRL has CPO and ORPO only among its experiments.)"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import logsigmoid
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head
from tunesmith.training.plan import MethodPlan, TrainPlan

from tunesmith_trainer.collate import adding, twice
from tunesmith_trainer.data import Row
from tunesmith_trainer.methods import Prepared
from tunesmith_trainer.methods.causal import TASK, load
from tunesmith_trainer.methods.metered import Metered
from tunesmith_trainer.methods.preferences import lengths, padded, pairs

__all__ = ["CONFIG", "TASK", "TRAINER", "load", "prepare"]

CONFIG = TrainingArguments


def pair_loss(
    method: MethodPlan,
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    chosen_length: torch.Tensor,
    rejected_length: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss, reward of the chosen, reward of the rejected answer) of each pair, from the answers' log-probabilities,
    summed over tokens, and their lengths. Negative log-likelihoods are means over an answer's tokens.
    """
    better, worse = chosen / chosen_length, rejected / rejected_length
    if cpo := method.cpo:
        rewards = cpo.beta * chosen, cpo.beta * rejected
        return -logsigmoid(rewards[0] - rewards[1]) - cpo.nll_weight * better, *rewards
    if simpo := method.simpo:
        rewards = simpo.beta * better, simpo.beta * worse
        return -logsigmoid(rewards[0] - rewards[1] - simpo.gamma), *rewards
    orpo = method.orpo
    assert orpo
    # log odds(p) = log p - log(1 - p), with p the geometric mean of the tokens' probabilities
    odds = [p - torch.log(-torch.expm1(p.clamp(max=-1e-7))) for p in (better, worse)]
    rewards = orpo.odds_ratio_weight * better, orpo.odds_ratio_weight * worse
    return -better - orpo.odds_ratio_weight * logsigmoid(odds[0] - odds[1]), *rewards


class TRAINER(Metered, Trainer):
    """One pass over both answers, one loss on their log-probabilities."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        model = options["model"]
        # Log-probabilities of the answers' tokens only, in tiles: the logits of all would be the largest tensor.
        add_fused_lm_head(model.get_base_model() if hasattr(model, "peft_config") else model)
        super().__init__(*arguments, **options)

    def loss_of(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The mean over pairs."""
        mask = inputs["completion_mask"]
        labels = inputs["input_ids"].masked_fill(mask == 0, -100)
        given = {name: value for name, value in inputs.items() if name != "completion_mask"}
        found = model(**given, labels=labels, fused_lm_head=True, use_cache=False)
        sums = found.log_probs.float().sum(-1)
        lengths = mask[:, 1:].sum(-1).clamp(min=1)
        loss, better, worse = pair_loss(self.plan.method, *sums.chunk(2), *lengths.chunk(2))
        return loss.mean(), {
            "rewards/chosen": better,
            "rewards/rejected": worse,
            "rewards/margins": better - worse,
            "rewards/accuracies": (better > worse).float(),
        }


def prepare(plan: TrainPlan, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> Prepared:
    """Prompts and both answers as tokens."""
    dataset, summary = pairs(plan, rows, tokenizer)
    collator = DataCollatorForPreference(pad_token_id=padded(tokenizer))
    more, media = adding(tokenizer, collator, twice)
    options = {"processing_class": tokenizer, "data_collator": collator, **media}
    return Prepared(dataset, summary, more, options, lengths(dataset))
