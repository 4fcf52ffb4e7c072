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

from tunesmith_trainer.data import Content, Row
from tunesmith_trainer.errors import DataError
from tunesmith_trainer.methods import Prepared
from tunesmith_trainer.methods.classifiers import Classifier, load, pad_rows
from tunesmith_trainer.methods.metered import Metered
from tunesmith_trainer.methods.preferences import padded

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


class TRAINER(Classifier, Metered, Trainer):
    """One pass over all documents of the rows."""

    def loss_of(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Pointwise or listwise."""
        options = self.plan.method.reranker or Reranker()
        found = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        ).logits.float()[:, 0]
        real = inputs["real"]
        scores = torch.zeros(real.shape, device=found.device).masked_scatter(real, found)
        others = scores.masked_fill(~real, float("-inf"))[:, 1:]
        metrics = {}
        if others.shape[1]:
            metrics["recall@1"] = (scores[:, 0] > others.max(-1).values).float()
        return rank_loss(options.loss, scores, real), metrics


def plain(content: Content) -> str:
    """A text, or a conversation's turns below each other."""
    return content if isinstance(content, str) else "\n".join(str(message["content"]) for message in content)


def prepare(plan: TrainPlan, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> Prepared:
    """Query and document as the tokenizer joins pairs, as engines and CrossEncoders do. The longer is cut."""
    options = plan.method.reranker or Reranker()
    documents: list[list[list[int]]] = []
    for row in rows:
        if options.loss == "Listwise" and not row.negatives:
            raise DataError(
                f"{row.where}: no negatives; expected one at least, against which the positive wins, or loss Pointwise"
            )
        for positive in row.positives:
            texts = [plain(one) for one in (positive, *row.negatives)]
            query = [plain(row.messages or row.text)] * len(texts)
            coded: Any = tokenizer(query, texts, truncation=True, max_length=plan.training.max_length)
            documents.append(coded["input_ids"])
    pad = padded(tokenizer)

    def collate(examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        counts = torch.tensor([len(one["documents"]) for one in examples])
        real = torch.arange(int(counts.max()))[None] < counts[:, None]
        return {**pad_rows([document for one in examples for document in one["documents"]], pad), "real": real}

    count = sum(map(len, documents))
    summary = f"{len(documents)} queries with {count} documents, {sum(len(d) for q in documents for d in q)} tokens"
    return Prepared(
        Dataset.from_dict({"documents": documents}), summary, {},
        {"processing_class": tokenizer, "data_collator": collate},
    )  # fmt: skip
