"""SFT and PreTraining: the likelihood of the next token, by trl.SFTTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from pyarrow import table
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer
from tunesmith.training.plan import TrainPlan

from tunesmith_trainer.data import Row
from tunesmith_trainer.lifecycle import Lifecycle
from tunesmith_trainer.masks import columns, tokenize
from tunesmith_trainer.methods import Prepared
from tunesmith_trainer.methods.causal import TASK, load

__all__ = ["CONFIG", "TASK", "TRAINER", "load", "prepare"]

CONFIG = SFTConfig


class TRAINER(Lifecycle, SFTTrainer):
    """TRL's SFTTrainer."""


def prepare(plan: TrainPlan, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> Prepared:
    """Ids and labels, with exactly the tokens to be learned in the labels."""
    training = plan.training
    tokens = tokenize(rows, tokenizer, plan.method.loss_on, training.max_length)
    arguments: dict[str, Any] = {
        "max_length": training.max_length,
        "packing": training.packing,
        "packing_strategy": "bfd",
        "dataset_kwargs": None if training.packing else {"skip_prepare_dataset": True},
        "shuffle_dataset": False,  # the sampler shuffles
    }
    summary = (
        f"{len(tokens.input_ids)} rows, {sum(map(len, tokens.input_ids))} tokens; {tokens.cut} cut to maxLength, "
        f"{tokens.dropped} left out as nothing to learn remained"
    )
    return Prepared(Dataset(table(columns(tokens))), summary, arguments, {"processing_class": tokenizer})
