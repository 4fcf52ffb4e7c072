"""SFT and PreTraining: the likelihood of the next token, by trl.SFTTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from tunesmith.training.plan import TrainPlan

from tunesmith_trainer.cache import cache_of
from tunesmith_trainer.collate import adding
from tunesmith_trainer.data import Row
from tunesmith_trainer.lifecycle import Lifecycle
from tunesmith_trainer.masks import Masker
from tunesmith_trainer.methods import Prepared
from tunesmith_trainer.methods.causal import TASK, load
from tunesmith_trainer.methods.preferences import padded
from tunesmith_trainer.tokens import Limit, tokenize

__all__ = ["CONFIG", "TASK", "TRAINER", "load", "prepare"]

CONFIG = SFTConfig


class TRAINER(Lifecycle, SFTTrainer):
    """TRL's SFTTrainer."""


def prepare(plan: TrainPlan, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> Prepared:
    """Ids and labels, with exactly the tokens to be learned in the labels."""
    training = plan.training
    empty = not plan.method.sft or plan.method.sft.empty_reasoning == "Learned"
    limit = Limit.of(plan)
    tokens = tokenize(rows, Masker(tokenizer, plan.method.loss_on, empty), limit, cache_of(plan))
    arguments: dict[str, Any] = {
        "max_length": training.max_length,
        "packing": training.packing,
        "packing_strategy": "bfd",
        "dataset_kwargs": None if training.packing else {"skip_prepare_dataset": True},
        "shuffle_dataset": False,  # the sampler shuffles
    }
    summary = (
        f"{len(tokens.table)} rows, {tokens.count} tokens; {tokens.cut} longer ones {limit.words()}, "
        f"{tokens.dropped} left out as nothing to learn remained"
    )
    options: dict[str, Any] = {"processing_class": tokenizer}
    if "media" in tokens.table.column_names and training.packing:
        summary += "; not packed, as rows have media"
        arguments |= {"packing": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
    if not arguments["packing"]:
        more, collator = adding(tokenizer, DataCollatorForLanguageModeling(pad_token_id=padded(tokenizer)))
        arguments, options = arguments | more, options | collator
    return Prepared(tokens.table, summary, arguments, options)
