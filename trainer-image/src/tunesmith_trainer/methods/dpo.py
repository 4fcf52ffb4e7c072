"""DPO, by trl.DPOTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from tunesmith.api.methods import DPO
from tunesmith.training.plan import TrainPlan

from tunesmith_trainer.collate import adding, twice
from tunesmith_trainer.data import Row
from tunesmith_trainer.methods import Prepared
from tunesmith_trainer.methods.causal import TASK, load
from tunesmith_trainer.methods.preferences import Held, lengths, padded, pairs

__all__ = ["CONFIG", "TASK", "TRAINER", "load", "prepare"]

CONFIG = DPOConfig
LOSSES = {"Sigmoid": "sigmoid", "Hinge": "hinge", "IPO": "ipo", "Robust": "robust"}


def losses(options: DPO) -> dict[str, Any]:
    """The loss as a weighted sum of TRL's."""
    share = options.label_smoothing
    weights: dict[str, float] = {LOSSES[options.loss]: 1.0}
    if options.loss == "Sigmoid" and share:
        # TRL's sigmoid knows no smoothing. With S = -log sigmoid(z), T = -log sigmoid(-z), and robust
        # R = ((1 - e) S - e T) / (1 - 2e), the smoothed loss (1 - e) S + e T is 2 (1 - e) S - (1 - 2e) R.
        weights = {"sigmoid": 2 * (1 - share), "robust": 2 * share - 1}
    if options.sft_weight:
        weights["sft"] = options.sft_weight
    return {
        "loss_type": list(weights), "loss_weights": list(weights.values()), "label_smoothing": share,
        "beta": options.beta,
    }  # fmt: skip


class TRAINER(Held, DPOTrainer):
    """TRL's DPOTrainer."""

    def counted(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Tokens of the answers."""
        better, worse = (side.sum() for side in inputs["completion_mask"][:, 1:].chunk(2))
        of_better = dict.fromkeys(("logits/chosen", "mean_token_accuracy"), better)
        return {**of_better, "logits/rejected": worse, "entropy": better + worse}


def prepare(plan: TrainPlan, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> Prepared:
    """Prompts and both answers as tokens."""
    dataset, summary = pairs(plan, rows, tokenizer)
    # The plan's dropout holds; max_length is kept already.
    arguments = {**losses(plan.method.dpo or DPO()), "max_length": None, "disable_dropout": False}
    more, collator = adding(tokenizer, DataCollatorForPreference(pad_token_id=padded(tokenizer)), twice)
    options = {"processing_class": tokenizer, **collator}
    return Prepared(dataset, summary, arguments | more, options, lengths(dataset))
