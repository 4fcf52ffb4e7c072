"""What RewardModel, Classification and Reranker share: a sequence classifier, and what its artefact says of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerFast
from tunesmith.training.plan import TrainPlan

from tunesmith_trainer import chat
from tunesmith_trainer.chat import template_errors
from tunesmith_trainer.collate import COLUMN
from tunesmith_trainer.data import Content, Row
from tunesmith_trainer.errors import DataError
from tunesmith_trainer.lifecycle import Lifecycle
from tunesmith_trainer.media import media_of, spelled, text_of
from tunesmith_trainer.methods.preferences import padded
from tunesmith_trainer.model import load_model, load_tokenizer
from tunesmith_trainer.multimodal import processor_of
from tunesmith_trainer.tokens import Limit

PROBLEMS = {
    "SingleLabel": "single_label_classification", "MultiLabel": "multi_label_classification",
    "Regression": "regression",
}  # fmt: skip


class Classifier(Lifecycle):
    """A trainer whose model has a head `score`."""

    def completed(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """A whole model says in its config.json what its head means; beside an adapter, head.json does."""
        model: Any = self.accelerator.unwrap_model(self.model)
        config = model.config
        said = {
            "architectures": [type(model.get_base_model() if hasattr(model, "peft_config") else model).__name__],
            "id2label": {str(key): value for key, value in config.id2label.items()},
            "label2id": config.label2id,
            "problem_type": config.problem_type,
            "pad_token_id": config.pad_token_id,
        }
        return (said, {}) if self.plan.tuner.type == "Full" else ({}, {"head.json": said})


def load(
    plan: TrainPlan, dtype: torch.dtype, quantization: BitsAndBytesConfig | None, device: str | int | None
) -> PreTrainedModel:
    """The model with a new head over the last token, unless its files have one."""
    options, config = plan.method.classification, {}
    if options and options.labels:
        config = {
            "id2label": dict(enumerate(options.labels)),
            "label2id": {name: place for place, name in enumerate(options.labels)},
        }
    problem = PROBLEMS[options.problem] if options else "regression"
    pad = padded(load_tokenizer(plan.model))
    model = load_model(
        plan.model, dtype, quantization, device, "SequenceClassification",
        num_labels=len(options.labels) if options and options.labels else 1, problem_type=problem, **config,
    )  # fmt: skip
    model.config.pad_token_id = model.config.get_text_config().pad_token_id = pad
    return model


def written(content: Content, tokenizer: PreTrainedTokenizerFast, row: Row) -> tuple[str, bool]:
    """(a text or a conversation as the model reads it, whether the tokenizer's own special tokens belong to it)."""
    if isinstance(content, str):
        return content, True
    if not tokenizer.chat_template:
        return plain(content, tokenizer), True
    with template_errors(row):
        return chat.render(tokenizer, row, content), False


def plain(content: Content, tokenizer: PreTrainedTokenizerFast) -> str:
    """A text, or a conversation's turns below each other, with placeholders for media."""
    if isinstance(content, str):
        return content
    multimodal = processor_of(tokenizer)
    spell = (lambda parts: multimodal.raw(spelled(parts))) if multimodal else text_of
    return "\n".join(str(spell(message["content"])) for message in content)


def encode(content: Content, tokenizer: PreTrainedTokenizerFast, row: Row, limit: Limit) -> list[int]:
    """Token ids of a text or a conversation within the limit; none where nothing of it may be kept."""
    text, special = written(content, tokenizer, row)
    media = media_of(content)
    if media:
        text, _ = processor_of(tokenizer, row, media).expand(text, [], media, row.where)
    ids: Any = tokenizer(text, add_special_tokens=special)["input_ids"]
    if not ids:
        raise DataError(f"{row.where}: there are no tokens in it; leave the row out")
    if len(ids) <= limit.tokens:
        return list(ids)
    limit.refuse(row, len(ids))
    if media or limit.truncation == "Drop":
        return []
    return shortened(tokenizer, [text], special, limit)


def shortened(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], special: bool, limit: Limit) -> list[int]:
    """A text, or two as a pair, cut by the tokenizer, which keeps its own special tokens at the ends."""
    side = tokenizer.truncation_side
    tokenizer.truncation_side = "left" if limit.truncation == "Left" else "right"
    try:
        found: Any = tokenizer(*texts, add_special_tokens=special, truncation=True, max_length=limit.tokens)
    finally:  # the artefact's tokenizer is the model's
        tokenizer.truncation_side = side
        tokenizer.backend_tokenizer.no_truncation()
    return list(found["input_ids"])


def column(media: Sequence[Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """A dataset's column with the numbers of media, of each row's or of each of its sequences'; none without media."""
    multimodal = processor_of(tokenizer)
    return {COLUMN: [numbered(one, multimodal) for one in media]} if multimodal and any(map(filled, media)) else {}


def numbered(media: Sequence[Any], multimodal: Any) -> list[Any]:
    """Media, or lists of media, as numbers."""
    if media and isinstance(media[0], list):
        return [numbered(one, multimodal) for one in media]
    return list(multimodal.numbers(media))


def filled(media: Sequence[Any]) -> bool:
    """Whether there is a medium in it."""
    return any(filled(one) if isinstance(one, list) else True for one in media)


def pad_rows(rows: Sequence[Sequence[int]], pad: int) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask, filled up at the end."""
    longest = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
    }
