"""SFT and PreTraining: the likelihood of the next token, by trl.SFTTrainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer, pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from tunesmith.training.plan import TrainPlan

from tunesmith_trainer.cache import cache_of
from tunesmith_trainer.collate import adding
from tunesmith_trainer.data import Row
from tunesmith_trainer.errors import ConfigError
from tunesmith_trainer.lifecycle import Lifecycle
from tunesmith_trainer.masks import Masker
from tunesmith_trainer.methods import Prepared
from tunesmith_trainer.methods.causal import TASK, load
from tunesmith_trainer.methods.preferences import padded
from tunesmith_trainer.sequence import FIELD
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

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = [*self._signature_columns, WEIGHTS]

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """The sum of the tokens' losses, each times its weight, divided by the number of the tokens."""
        weights = inputs.pop(WEIGHTS, None)
        model = model if weights is None else weighing(model, weights)
        return super().compute_loss(model, inputs, *arguments, **options)


def prepare(plan: TrainPlan, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> Prepared:
    """Ids and labels, with exactly the tokens to be learned in the labels."""
    training = plan.training
    empty = not plan.method.sft or plan.method.sft.empty_reasoning == "Learned"
    limit = Limit.of(plan)
    tokens = tokenize(rows, Masker(tokenizer, plan.method.loss_on, empty), limit, cache_of(plan))
    table, media = tokens.table, "media" in tokens.table.column_names
    if WEIGHTS in table.column_names and plan.distribution.sequence_parallel > 1:
        raise ConfigError(
            f"{FIELD}: {plan.distribution.sequence_parallel}, but rows have turns with a loss or weight other than "
            "0 and 1, which processes that share rows do not know: use 1, or leave the weights out"
        )
    packing = training.packing and not media
    if packing:
        table = pack_dataset(filled(table), training.max_length, STRATEGY)
    arguments: dict[str, Any] = {
        "max_length": training.max_length,
        "packing": packing,
        "packing_strategy": STRATEGY,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "shuffle_dataset": False,  # the sampler shuffles
    }
    summary = (
        f"{len(tokens.table)} rows, {tokens.count} tokens; {tokens.cut} longer ones {limit.words()}, "
        f"{tokens.dropped} left out as nothing to learn remained"
    )
    options: dict[str, Any] = {"processing_class": tokenizer}
    if training.packing and media:
        summary += "; not packed, as rows have media"
    if not packing:
        more, collator = adding(tokenizer, DataCollatorForLanguageModeling(pad_token_id=padded(tokenizer)))
        arguments, options = arguments | more, options | collator
    return Prepared(table, summary, arguments, options)
