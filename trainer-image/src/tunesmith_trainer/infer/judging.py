"""What models say that do not answer: classes, scores, orders of documents, vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from tunesmith.api.methods import Classification, Embedding

from tunesmith_trainer.data import Content, Row
from tunesmith_trainer.errors import DataError, ModelError
from tunesmith_trainer.infer.subject import Loaded
from tunesmith_trainer.media import Medium, media_of
from tunesmith_trainer.methods.classification import target
from tunesmith_trainer.methods.classifiers import encode, pad_rows
from tunesmith_trainer.methods.embedding import pool
from tunesmith_trainer.methods.preferences import padded
from tunesmith_trainer.methods.reranker import paired
from tunesmith_trainer.multimodal import processor_of
from tunesmith_trainer.tokens import Limit

if TYPE_CHECKING:
    import torch

Text = tuple[list[int], list[Medium]]
"""(tokens, media) of a text as the model reads it."""


def judged(rows: Sequence[Row], loaded: Loaded, batch_size: int) -> list[dict[str, Any]]:
    """What the model says of each row, and how right it is, where the row says what is expected."""
    work = {"Classify": classes, "Score": rewards, "Rerank": orders, "Embed": vectors}[loaded.subject.task]
    return [{"row": row.where, **one} for row, one in zip(rows, work(rows, loaded, batch_size), strict=True)]


def limit_of(loaded: Loaded) -> Limit:
    """As in training; but what training leaves out or refuses is judged by what is kept of it."""
    trained = loaded.subject.trained
    most = int(min(trained.max_length, loaded.context))
    return Limit(most, "Left" if trained.truncation == "Left" else "Right")


def read(content: Content, row: Row, loaded: Loaded) -> Text:
    """A text or a conversation, cut as in training."""
    limit = limit_of(loaded)
    ids = encode(content, loaded.tokenizer, row, limit)
    if not ids:
        raise DataError(f"{row.where}: with its media it is longer than {limit.tokens} tokens")
    return ids, media_of(content)


def passes(texts: Sequence[Text], loaded: Loaded, batch_size: int) -> Iterator[tuple[torch.Tensor, Any]]:
    """(attention mask, what the model returns) of batches of texts."""
    import torch

    multimodal = processor_of(loaded.tokenizer)
    for begin in range(0, len(texts), batch_size):
        part = texts[begin : begin + batch_size]
        batch = pad_rows([ids for ids, _ in part], padded(loaded.tokenizer))
        if multimodal and any(media for _, media in part):
            batch |= multimodal.tensors_of([media for _, media in part])
            batch |= multimodal.token_types(batch["input_ids"])
        batch = {name: value.to(loaded.model.device) for name, value in batch.items()}
        with torch.inference_mode():
            yield batch["attention_mask"], loaded.model(**batch, use_cache=False)


def finite(numbers: torch.Tensor, loaded: Loaded) -> torch.Tensor:
    """What a model says, if it says something. Raises ModelError."""
    if not numbers.isfinite().all():
        uri = loaded.subject.made.uri
        raise ModelError(f"{uri}: what it says of a text is no number (NaN or infinite): its weights are damaged")
    return numbers


def logits(texts: Sequence[Text], loaded: Loaded, batch_size: int) -> list[torch.Tensor]:
    """The head's numbers for each text."""
    return [row for _, made in passes(texts, loaded, batch_size) for row in finite(made.logits.float().cpu(), loaded)]


def classes(rows: Sequence[Row], loaded: Loaded, batch_size: int) -> Iterator[dict[str, Any]]:
    """The class, the classes or the number of each row."""
    options = loaded.subject.method.classification or Classification(problem="Regression")
    names = options.labels or []
    texts = [read(row.messages or row.text, row, loaded) for row in rows]
    for row, scores in zip(rows, logits(texts, loaded, batch_size), strict=True):
        known = row.label is not None
        if options.problem == "Regression":
            value = float(scores[0])
            error = {"error": abs(value - float(target(row, options)))} if known else {}  # type: ignore[arg-type]
            yield {"value": value, **error}
            continue
        single = options.problem == "SingleLabel"
        shares = (scores.softmax(-1) if single else scores.sigmoid()).tolist()
        chosen = [int(scores.argmax())] if single else [n for n, score in enumerate(scores.tolist()) if score > 0]
        said: dict[str, Any] = {"label": names[chosen[0]]} if single else {"labels": [names[n] for n in chosen]}
        said["probabilities"] = dict(zip(names, (round(share, 6) for share in shares), strict=True))
        if known:
            wanted = target(row, options)
            wanted = [wanted] if single else [n for n, one in enumerate(wanted) if one]  # type: ignore[arg-type]
            said |= {"expected": [names[n] for n in wanted], "correct": chosen == wanted}  # type: ignore[union-attr]
        yield said


def rewards(rows: Sequence[Row], loaded: Loaded, batch_size: int) -> Iterator[dict[str, Any]]:
    """The reward of each conversation, and of its worse answer, where there is one."""
    texts = [read(side, row, loaded) for row in rows for side in (row.messages or row.text, row.rejected) if side]
    found = iter(float(scores[0]) for scores in logits(texts, loaded, batch_size))
    for row in rows:
        reward = next(found)
        if not row.rejected:
            yield {"reward": reward}
            continue
        worse = next(found)
        yield {"reward": reward, "rejected": worse, "margin": reward - worse, "correct": reward > worse}


def orders(rows: Sequence[Row], loaded: Loaded, batch_size: int) -> Iterator[dict[str, Any]]:
    """The scores of each row's documents, and their places from the best to the worst."""
    texts: list[Text] = []
    for row in rows:
        query = row.messages or row.text
        for document in (*row.positives, *row.negatives):
            ids = paired(query, document, loaded.tokenizer, row, limit_of(loaded))
            if not ids:
                raise DataError(f"{row.where}: with its media it is longer than {limit_of(loaded).tokens} tokens")
            texts.append((ids, [*media_of(query), *media_of(document)]))
    found = iter(float(scores[0]) for scores in logits(texts, loaded, batch_size))
    for row in rows:
        scores = [next(found) for _ in (*row.positives, *row.negatives)]
        order = sorted(range(len(scores)), key=lambda number: -scores[number])
        said: dict[str, Any] = {"scores": scores, "order": order}
        if row.negatives:
            first = min(order.index(number) for number in range(len(row.positives)))
            said |= {"recall@1": first == 0, "reciprocal_rank": 1 / (first + 1)}
        yield said


def vectors(rows: Sequence[Row], loaded: Loaded, batch_size: int) -> Iterator[dict[str, Any]]:
    """Each row's vector, of length 1; where rows have positives, the place of the first of them among the documents of
    all rows, by cosine.
    """
    import torch

    options = loaded.subject.method.embedding or Embedding()
    sides = [(row, side) for row in rows for side in (row.messages or row.text, *row.positives, *row.negatives)]
    texts = [read(side, row, loaded) for row, side in sides]
    every = torch.cat(
        [
            torch.nn.functional.normalize(
                finite(pool(made.last_hidden_state, mask, options.pooling), loaded), dim=-1
            ).cpu()
            for mask, made in passes(texts, loaded, batch_size)
        ]
    )
    begins = list(accumulate((1 + len(row.positives) + len(row.negatives) for row in rows[:-1]), initial=0))
    documents = sorted({*range(len(sides))} - {*begins})
    for row, begin in zip(rows, begins, strict=True):
        said: dict[str, Any] = {"vector": every[begin].tolist()}
        if row.positives:
            alike = every @ every[begin]
            best = float(alike[begin + 1 : begin + 1 + len(row.positives)].max())
            # Of two documents with the same text one is as right as the other.
            before = int((alike[documents] > best + 1e-6).sum())
            said |= {"cosine": best, "recall@1": before == 0, "reciprocal_rank": 1 / (1 + before)}
        yield said
