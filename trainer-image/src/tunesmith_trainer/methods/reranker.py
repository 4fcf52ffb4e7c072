"""Reranker: a score for a query and a document, of a classifier with one label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments
from tunesmith.api.methods import Reranker
from tunesmith.training.plan import TrainPlan

from tunesmith_trainer.collate import COLUMN, adding
from tunesmith_trainer.data import Content, Row
from tunesmith_trainer.errors import DataError
from tunesmith_trainer.media import media_of
from tunesmith_trainer.methods import Prepared
from tunesmith_trainer.methods.classifiers import Classifier, column, load, pad_rows, plain, shortened
from tunesmith_trainer.methods.metered import Metered
from tunesmith_trainer.methods.preferences import padded
from tunesmith_trainer.multimodal import processor_of
from tunesmith_trainer.tokens import Limit

__all__ = ["CONFIG", "TASK", "TRAINER", "load", "prepare"]

CONFIG = TrainingArguments
TASK = "SEQ_CLS"


def rank_loss(loss: str, scores: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """The mean over rows. The first score of a row is the positive's; those that are not `real` fill it up."""
    if loss == "Listwise":
        scores = scores.masked_fill(~real, float("-inf"))
        return cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long, device=scores.device))
    relevant = torch.zeros_like(scores)
    relevant[:, 0] = 1
    each = binary_cross_entropy_with_logits(scores, relevant, reduction="none") * real
    return (each.sum(-1) / real.sum(-1)).mean()


def first_of(scores: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """For each row whether its positive, the first, has the highest score; NaN where there is no negative."""
    others = scores.masked_fill(~real, float("-inf"))
    others[:, 0] = float("-inf")
    found = (scores[:, 0] > others.max(-1).values).float()
    return found.masked_fill(real.sum(-1) < 2, float("nan"))


class TRAINER(Classifier, Metered, Trainer):
    """One pass over all documents of the rows."""

    def loss_of(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Pointwise or listwise."""
        options = self.plan.method.reranker or Reranker()
        given = {name: value for name, value in inputs.items() if name != "real"}
        found = model(**given, use_cache=False).logits.float()[:, 0]
        real = inputs["real"]
        scores = torch.zeros(real.shape, device=found.device).masked_scatter(real, found)
        return rank_loss(options.loss, scores, real), {"recall@1": first_of(scores, real)}


def paired(query: Content, document: Content, tokenizer: PreTrainedTokenizerFast, row: Row, limit: Limit) -> list[int]:
    """Tokens of a query and a document. The longer is cut; none where nothing of them may be kept."""
    media = media_of(query), media_of(document)
    sides = [plain(one, tokenizer) for one in (query, document)]
    if any(media):
        multimodal = processor_of(tokenizer, row, [*media[0], *media[1]])
        sides = [multimodal.expand(text, [], own, row.where)[0] for text, own in zip(sides, media, strict=True)]
    coded: Any = tokenizer(*sides)["input_ids"]
    if len(coded) > limit.tokens:
        limit.refuse(row, len(coded))
        if any(media) or limit.truncation == "Drop":
            return []
        return shortened(tokenizer, sides, True, limit)
    return list(coded)


def pairs_of(examples: Sequence[dict[str, Any]]) -> list[list[int]]:
    """The media of all documents, each with its query's."""
    return [one for e in examples for one in (e.get(COLUMN) or [[] for _ in e["documents"]])]


def prepare(plan: TrainPlan, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> Prepared:
    """Query and document as the tokenizer joins pairs, as engines and CrossEncoders do. The longer is cut."""
    options = plan.method.reranker or Reranker()
    documents: list[list[list[int]]] = []
    media: list[Any] = []
    dropped = 0
    for row in rows:
        if options.loss == "Listwise" and not row.negatives:
            raise DataError(
                f"{row.where}: no negatives; expected one at least, against which the positive wins, or loss Pointwise"
            )
        for positive in row.positives:
            query, every = row.messages or row.text, (positive, *row.negatives)
            coded = [paired(query, one, tokenizer, row, Limit.of(plan)) for one in every]
            if all(coded):
                documents.append(coded)
                media.append([[*media_of(query), *media_of(one)] for one in every])
            else:
                dropped += 1
    if not documents:
        raise DataError(f"all {len(rows)} rows are longer than spec.training.maxLength: raise it")
    pad = padded(tokenizer)

    def collate(examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        counts = torch.tensor([len(one["documents"]) for one in examples])
        real = torch.arange(int(counts.max()))[None] < counts[:, None]
        return {**pad_rows([document for one in examples for document in one["documents"]], pad), "real": real}

    count = sum(map(len, documents))
    tokens = sum(len(d) for q in documents for d in q)
    summary = f"{len(documents)} queries with {count} documents, {tokens} tokens; {dropped} left out as longer"
    more, collator = adding(tokenizer, collate, pairs_of)
    return Prepared(
        Dataset.from_dict({"documents": documents, **column(media, tokenizer)}), summary, more,
        {"processing_class": tokenizer, "data_collator": collate, **collator},
    )  # fmt: skip
