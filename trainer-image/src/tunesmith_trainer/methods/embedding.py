"""Embedding: texts as vectors, saved so that sentence-transformers, TEI and vLLM load them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import distributed
from torch.nn.functional import cross_entropy, mse_loss, normalize, relu
from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainingArguments
from tunesmith.api.methods import Embedding
from tunesmith.training.plan import TrainPlan

from tunesmith_trainer import group
from tunesmith_trainer.collate import COLUMN, adding
from tunesmith_trainer.data import Row
from tunesmith_trainer.errors import ConfigError, DataError
from tunesmith_trainer.media import media_of
from tunesmith_trainer.methods import Prepared
from tunesmith_trainer.methods.classifiers import column, encode, pad_rows
from tunesmith_trainer.methods.metered import Metered
from tunesmith_trainer.methods.preferences import padded
from tunesmith_trainer.model import load_model
from tunesmith_trainer.tokens import Limit

CONFIG = TrainingArguments
TASK = "FEATURE_EXTRACTION"


class Gather(torch.autograd.Function):
    """The rows of all processes, one process after the other. A row's gradient is the sum of what all say of it."""

    @staticmethod
    def forward(ctx: Any, own: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """Equal shapes are exchanged: shorter parts are filled up."""
        ctx.counts = counts
        full = own.new_zeros(max(counts), *own.shape[1:])
        full[: len(own)] = own
        parts = [torch.empty_like(full) for _ in counts]
        distributed.all_gather(parts, full.contiguous())
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        """This process's part of the sum."""
        whole = gradients[0].contiguous().clone()
        distributed.all_reduce(whole)
        rank = distributed.get_rank()
        return whole.split(ctx.counts)[rank], None


def gathered(own: torch.Tensor) -> tuple[torch.Tensor, int]:
    """(the rows of all processes, where this process's begin)."""
    if not group.several():
        return own, 0
    counts = [torch.zeros(1, dtype=torch.long, device=own.device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(counts, torch.tensor([len(own)], device=own.device))
    numbers = [int(count) for count in counts]
    found: torch.Tensor = Gather.apply(own, numbers)  # type: ignore[no-untyped-call]
    return found, sum(numbers[: distributed.get_rank()])


def pool(hidden: torch.Tensor, mask: torch.Tensor, how: str) -> torch.Tensor:
    """One vector for each row, in float32, not normalised."""
    hidden = hidden.float()
    if how == "LastToken":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(-1) - 1]
    weights = mask[..., None].float()
    return (hidden * weights).sum(1) / weights.sum(1)


def vector_loss(
    options: Embedding, anchors: torch.Tensor, documents: torch.Tensor, labels: torch.Tensor | None, alone: bool = False
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss of vectors that are not normalised yet. The first documents are the anchors' positives, the others
    negatives; also those of other processes, unless these have the same (`alone`).
    """
    anchors, documents = normalize(anchors, dim=-1), normalize(documents, dim=-1)
    if options.loss == "InfoNCE":
        everything, begin = (documents, 0) if alone else gathered(documents)
        scores = anchors @ everything.T / options.temperature
        own = torch.arange(len(anchors), device=scores.device) + begin
        return cross_entropy(scores, own), {"recall@1": (scores.argmax(-1) == own).float()}
    assert labels is not None
    alike = (anchors * documents).sum(-1)
    if options.loss == "Cosine":
        return mse_loss(alike, labels), {"mean_absolute_error": (alike - labels).abs()}
    distance = 1 - alike
    loss = 0.5 * (labels * distance**2 + (1 - labels) * relu(options.margin - distance) ** 2)
    return loss.mean(), {"accuracy": ((distance < options.margin) == (labels > 0.5)).float()}


class TRAINER(Metered, Trainer):
    """One pass over anchors, positives and negatives together."""

    def loss_of(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The loss of the whole vector, and of each of its beginnings that should do by itself."""
        options = self.plan.method.embedding or Embedding()
        mask = inputs["attention_mask"]
        given = {name: value for name, value in inputs.items() if name not in ("anchors", "targets")}
        hidden = model(**given, use_cache=False).last_hidden_state
        vectors = pool(hidden, mask, options.pooling)
        count, labels = int(inputs["anchors"]), inputs.get("targets")
        alone = not model.training and self.rows_at_hand == count
        loss, metrics = vector_loss(options, vectors[:count], vectors[count:], labels, alone)
        for size in options.dimensions:
            loss = loss + vector_loss(options, vectors[:count, :size], vectors[count:, :size], labels, alone)[0]
        return loss, metrics

    def completed(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """sentence-transformers' files."""
        model: Any = self.accelerator.unwrap_model(self.model)
        options = self.plan.method.embedding or Embedding()
        last = options.pooling == "LastToken"
        modules = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
        files: dict[str, Any] = {
            "modules.json": [
                {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
                for number, (path, kind) in enumerate(modules)
            ],
            "1_Pooling/config.json": {
                "word_embedding_dimension": width(model),
                "pooling_mode_cls_token": False,
                "pooling_mode_mean_tokens": not last,
                "pooling_mode_max_tokens": False,
                "pooling_mode_mean_sqrt_len_tokens": False,
                "pooling_mode_weightedmean_tokens": False,
                "pooling_mode_lasttoken": last,
                "include_prompt": True,
            },
            "2_Normalize/config.json": {},
            "sentence_bert_config.json": {
                "max_seq_length": self.plan.training.max_length, "do_lower_case": False, **self.read_as(),
            },
            "config_sentence_transformers.json": {
                "prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine",
                "model_type": "SentenceTransformer",
            },
        }  # fmt: skip
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        return {"architectures": [type(base).__name__]}, files

    def read_as(self) -> dict[str, Any]:
        """How texts become tokens: as they stand. Unless told, sentence-transformers renders them as a user's turn
        where the tokenizer has a chat template. What else than text a model reads, it finds out by itself.
        """
        if getattr(self.processing_class, "multimodal", None):
            return {}
        return {
            "transformer_task": "feature-extraction",
            "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
            "module_output_name": "token_embeddings",
        }


def width(model: Any) -> int:
    """Dimensions of a vector."""
    return int(model.config.get_text_config().hidden_size)


def load(
    plan: TrainPlan, dtype: torch.dtype, quantization: BitsAndBytesConfig | None, device: str | int | None
) -> PreTrainedModel:
    """The model without a head."""
    model = load_model(plan.model, dtype, quantization, device, "None")
    options = plan.method.embedding or Embedding()
    if options.dimensions and max(options.dimensions) > width(model):
        raise ConfigError(
            f"spec.method.embedding.dimensions: {max(options.dimensions)}, but the model's vectors have {width(model)}"
        )
    return model


def texts_of(examples: Sequence[dict[str, Any]]) -> list[list[int]]:
    """The media of the texts in a batch's order: anchors, positives, negatives."""
    rows = [one.get(COLUMN) or [[] for _ in ("", *one["documents"])] for one in examples]
    return [row[0] for row in rows] + [row[1] for row in rows] + [one for row in rows for one in row[2:]]


def prepare(plan: TrainPlan, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> Prepared:
    """Tokens of anchors and documents; a row with several positives becomes as many rows."""
    options, limit, pad = plan.method.embedding or Embedding(), Limit.of(plan), padded(tokenizer)
    pairs = options.loss != "InfoNCE"
    columns: dict[str, list[Any]] = {"anchor": [], "documents": [], "target": []}
    media: list[Any] = []
    dropped = 0
    for row in rows:
        if pairs and row.label is None:
            raise DataError(f"{row.where}: no label; expected one beside the pair, as loss is {options.loss}")
        if options.loss == "Contrastive" and row.label not in (0, 1):
            raise DataError(f"{row.where}: the label is {row.label}; expected 1 (alike) or 0, as loss is Contrastive")
        anchor = encode(row.messages or row.text, tokenizer, row, limit)
        negatives = [] if pairs else [encode(one, tokenizer, row, limit) for one in row.negatives]
        for positive in row.positives:
            documents = [encode(positive, tokenizer, row, limit), *negatives]
            if not anchor or not all(documents):
                dropped += 1
                continue
            media.append([media_of(c) for c in (row.messages, positive, *(() if pairs else row.negatives))])
            for name, value in zip(columns, (anchor, documents, row.label or 0.0), strict=True):
                columns[name].append(value)
    if not pairs and plan.training.micro_batch_size * plan.world_size < 2 and not any(row.negatives for row in rows):
        raise ConfigError(
            "spec.training.microBatchSize: 1, but InfoNCE needs other rows as negatives, and the dataset has none of "
            "its own: use 2 or more, or give rows negatives"
        )

    def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        texts = [one["anchor"] for one in examples] + [one["documents"][0] for one in examples]
        texts += [document for one in examples for document in one["documents"][1:]]
        batch: dict[str, Any] = {**pad_rows(texts, pad), "anchors": len(examples)}
        if pairs:
            batch["targets"] = torch.tensor([one["target"] for one in examples], dtype=torch.float32)
        return batch

    if not media:
        raise DataError(f"all {len(rows)} rows are longer than spec.training.maxLength {limit.tokens}: raise it")
    dataset = Dataset.from_dict({**columns, **column(media, tokenizer)})
    tokens = sum(map(len, columns["anchor"])) + sum(len(d) for row in columns["documents"] for d in row)
    more, collator = adding(tokenizer, collate, texts_of)
    return Prepared(
        dataset, f"{len(dataset)} pairs, {tokens} tokens; {dropped} left out as longer than maxLength", more,
        {"processing_class": tokenizer, "data_collator": collate, **collator},
    )  # fmt: skip
