"""SFT and PreTraining: the likelihood of the next token, by trl.SFTTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from datasets import Dataset, disable_progress_bars
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer, pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from tunesmith.training.plan import TrainPlan

from tunesmith_trainer.cache import cache_of
from tunesmith_trainer.collate import adding
from tunesmith_trainer.data import Row
from tunesmith_trainer.drawn import Example, lazy_texts
from tunesmith_trainer.lifecycle import Lifecycle
from tunesmith_trainer.masks import Masker
from tunesmith_trainer.methods import Prepared
from tunesmith_trainer.methods.causal import TASK, load
from tunesmith_trainer.methods.preferences import padded
from tunesmith_trainer.multimodal import processor_of
from tunesmith_trainer.rowstream import stream_texts
from tunesmith_trainer.sequence import check_weights
from tunesmith_trainer.tokens import WEIGHTS, Limit, tokenize
from tunesmith_trainer.weights import WithWeights, filled, weighing

__all__ = ["CONFIG", "TASK", "TRAINER", "load", "prepare"]

CONFIG = SFTConfig
STRATEGY = "bfd"


class TRAINER(Lifecycle, SFTTrainer):
    """TRL's SFTTrainer, with weights of tokens."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.data_collator = WithWeights(self.data_collator)
        self.learned = torch.tensor(0)
        """Tokens of the micro-batch at hand."""

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*self._signature_columns, WEIGHTS]

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """The sum of the tokens' losses, each times its weight, divided by the number of the tokens."""
        weights = inputs.pop(WEIGHTS, None)
        whole = model if weights is None else weighing(model, weights)

        def counting(**batch: Any) -> Any:
            outputs = whole(**batch)
            self.learned = outputs.label_mask.sum()
            return outputs

        return super().compute_loss(counting, inputs, *arguments, **options)

    def counted(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Tokens that are learned."""
        return dict.fromkeys(("loss", "entropy", "mean_token_accuracy"), self.learned)


def packed(length: int, examples: list[Example]) -> list[Example]:
    """Examples put together into sequences of the length at most."""
    if not examples:
        return []
    disable_progress_bars()
    columns = {name: [one.get(name, []) for one in examples] for name in ("input_ids", "labels", WEIGHTS)}
    if not any(columns[WEIGHTS]):
        del columns[WEIGHTS]
    return list(pack_dataset(filled(Dataset.from_dict(columns)), length, STRATEGY))


def prepare(plan: TrainPlan, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> Prepared:
    """Ids and labels, with exactly the tokens to be learned in the labels."""
    training = plan.training
    empty = not plan.method.sft or plan.method.sft.empty_reasoning == "Learned"
    limit = Limit.of(plan)
    masker = Masker(tokenizer, plan.method.loss_on, empty)
    arguments: dict[str, Any] = {
        "max_length": training.max_length,
        "packing": False,
        "packing_strategy": STRATEGY,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "shuffle_dataset": False,  # the sampler shuffles
    }
    options: dict[str, Any] = {"processing_class": tokenizer}
    more, collator = adding(tokenizer, DataCollatorForLanguageModeling(pad_token_id=padded(tokenizer)))
    if training.streaming == "Enabled":
        if training.packing and processor_of(tokenizer) is None:  # rows with media are not packed
            stream = stream_texts(plan, masker, partial(packed, training.max_length))
            return Prepared(stream, stream.summary(), arguments | {"packing": True}, options)
        stream = stream_texts(plan, masker)
        return Prepared(stream, stream.summary(), arguments | more, options | collator)
    if training.tokenization == "Lazy":
        lazy = lazy_texts(plan, rows, masker)
        return Prepared(lazy, lazy.summary(), arguments | more, options | collator)
    tokens = tokenize(rows, masker, limit, cache_of(plan))
    table, media = tokens.table, "media" in tokens.table.column_names
    if WEIGHTS in table.column_names:
        check_weights(plan)
    packing = training.packing and not media
    if packing:
        table = pack_dataset(filled(table), training.max_length, STRATEGY)
    summary = (
        f"{len(tokens.table)} rows, {tokens.count} tokens; {tokens.cut} longer ones {limit.words()}, "
        f"{tokens.dropped} left out as nothing to learn remained"
    )
    if packing:
        return Prepared(table, summary, arguments | {"packing": True}, options)
    if training.packing:
        summary += "; not packed, as rows have media"
    return Prepared(table, summary, arguments | more, options | collator, tokens.lengths())
