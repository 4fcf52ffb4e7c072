"""Rows -> tables of tokens within a length: made once, and kept in the cache for the other processes and later jobs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from tunesmith.api.training import Truncation
from tunesmith.training.plan import TrainPlan

from tunesmith_trainer.cache import Cache, Notes, key_of
from tunesmith_trainer.chat import need_template
from tunesmith_trainer.data import Row
from tunesmith_trainer.errors import DataError
from tunesmith_trainer.masks import IGNORED, Ids, Masker, Weights, common, numbers_of
from tunesmith_trainer.media import media_of
from tunesmith_trainer.rows import Rows

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

BATCH = 256
WEIGHTS = "weights"


@dataclass(frozen=True)
class Limit:
    """How many tokens a row may have, and what becomes of longer ones."""

    tokens: int
    truncation: Truncation = "Right"

    @classmethod
    def of(cls, plan: TrainPlan) -> Limit:
        """The plan's."""
        return cls(plan.training.max_length, plan.training.truncation)

    def refuse(self, row: Row, count: int) -> None:
        """Raise for a longer row, where none may be."""
        if self.truncation == "Error":
            raise DataError(
                f"{row.where}: it has {count} tokens, spec.training.maxLength is {self.tokens} and truncation is "
                "Error: shorten the row, raise maxLength, or choose another truncation"
            )

    def cut(self, row: Row, ids: Ids, labels: Ids, weights: Weights) -> list[tuple[Ids, Ids, Weights]]:
        """What is kept of a row: itself, a part, several, or nothing. A row with media is kept whole or not at all."""
        if len(ids) <= self.tokens:
            return [(ids, labels, weights)]
        self.refuse(row, len(ids))
        if self.truncation == "Drop" or media_of(row.messages, row.parts):
            return []
        begins = range(0, len(ids), self.tokens)
        parts = {"Right": [0], "Left": [len(ids) - self.tokens], "Split": begins}[self.truncation]
        ranges = [slice(at, at + self.tokens) for at in parts]
        found = [(ids[own], labels[own].copy(), weights[own]) for own in ranges]
        for _, part, _ in found:
            part[0] = IGNORED  # nothing stands before it to predict it from
        return found

    def words(self) -> str:
        """What becomes of longer rows, for people."""
        return {"Drop": "left out", "Split": "split"}.get(self.truncation, "cut") + " at maxLength"


@dataclass(frozen=True)
class Tokens:
    """Tokenised rows."""

    table: Dataset
    """`input_ids` and `labels`, lists of equal length: a label is the token itself where it is learned, else -100; and
    `media`, the numbers of the row's media, where there are any; and `weights`, where turns have other weights than 1:
    what each token's loss is multiplied by, empty for a row in which it is 1."""
    count: int
    """Tokens in all."""
    cut: int
    """Rows that were longer than the limit."""
    dropped: int
    """Rows of which nothing to learn was left within it, or that would have lost part of an image."""

    def lengths(self) -> Sequence[int]:
        """Tokens of each row; reads where rows begin, not the rows."""
        import pyarrow.compute as pc

        ids = self.table.with_format("arrow")[:]["input_ids"]
        return pc.list_value_length(ids).to_numpy()  # type: ignore[no-any-return]


def texts(
    rows: Sequence[Row], masker: Masker, limit: Limit
) -> Iterator[tuple[int, Row, int, list[tuple[Ids, Ids, Weights]]]]:
    """Of each text of `rows`: the place of its row, what is rendered in it, how many tokens it has before it is cut,
    and its parts with something to learn.
    """
    for place, row, *coded in masker.tokens(rows):
        parts = limit.cut(row, *coded)
        yield place, row, len(coded[0]), [part for part in parts if (part[1] != IGNORED).any()]


def tokenize(rows: Sequence[Row], masker: Masker, limit: Limit, cache: Cache | None = None) -> Tokens:
    """Ids and labels of `rows` within the limit. Rows without labels are left out."""
    need_template(rows, masker.tokenizer)

    def make(notes: Notes) -> Iterator[Any]:
        from pyarrow import array, float32, int32, list_, record_batch

        ids_ = list_(int32())
        types = {"input_ids": ids_, "labels": ids_, WEIGHTS: list_(float32()), "row": int32(), "turns": int32()}
        notes |= {"count": 0, "cut": 0, "dropped": 0, "media": False, WEIGHTS: False}
        for begin in range(0, len(rows), BATCH):
            columns: dict[str, list[Any]] = {name: [] for name in types}
            for place, row, length, parts in texts(rows[begin : begin + BATCH], masker, limit):
                notes["cut"] += length > limit.tokens
                notes["dropped"] += not parts
                notes["media"] |= bool(parts and media_of(row.messages, row.parts))
                for ids, labels, weights in parts:
                    weighed = bool((weights != 1).any())
                    notes[WEIGHTS] |= weighed
                    notes["count"] += len(ids)
                    values = ids, labels, weights if weighed else [], begin + place, len(row.messages)
                    for name, value in zip(columns, values, strict=True):
                        columns[name].append(value)
            yield record_batch({name: array(values, types[name]) for name, values in columns.items()})

    table, notes = kept(rows, masker, "tokens", asdict(limit), make, cache)
    if not len(table):
        raise DataError(
            f"nothing to learn is left of {len(rows)} rows within spec.training.maxLength {limit.tokens} "
            f"({notes['cut']} of them are longer): raise it"
        )
    places = [(at, turns) for at, turns in zip(table["row"], table["turns"], strict=True)] if notes["media"] else []
    table = table.remove_columns(["row", "turns"] if notes[WEIGHTS] else ["row", "turns", WEIGHTS])
    if places:
        shown = [replace(rows[at], messages=rows[at].messages[:turns]) for at, turns in places]
        table = table.add_column("media", numbers_of(shown, masker.tokenizer))
    return Tokens(table, notes["count"], notes["cut"], notes["dropped"])


def in_files(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether a row has media that are not in its dataset's own file."""
    if not getattr(tokenizer, "multimodal", None):
        return False
    return any(one.content is None for row in rows for one in media_of([*row.messages, *row.rejected], row.parts))


def kept(
    rows: Sequence[Row], masker: Masker, what: str, how: Any, make: Any, cache: Cache | None
) -> tuple[Dataset, Notes]:
    """A table made of rows, from the cache where rows and tokenizer say what they are. Media in files may change, and
    with their size the number of tokens: rows with such are not kept.
    """
    key = masker.key
    if cache is None or key is None or not isinstance(rows, Rows) or in_files(rows, masker.tokenizer):
        return Cache().table(what, make)
    return cache.table(key_of(what, rows.key, key, how), make)


@dataclass(frozen=True)
class Answers:
    """Prompts and answers as token ids; an answer ends with the end-of-turn token."""

    prompts: list[list[int]]
    answers: list[tuple[list[int], ...]]
    """The answers to each prompt, as many for all."""
    kept: list[int]
    """Which rows they are."""
    media: dict[str, list[list[int]]]
    """A column with the numbers of their media, if any has some."""
    cut: int
    dropped: int

    def summary(self) -> str:
        """For people."""
        tokens = sum(len(p) * len(a) + sum(map(len, a)) for p, a in zip(self.prompts, self.answers, strict=True))
        return (
            f"{len(self.kept)} rows, {tokens} tokens; {self.cut} cut to maxLength, {self.dropped} left out as "
            "no answer remained within it"
        )


def last_turn(ids: Ids, labels: Ids) -> tuple[list[int], list[int]]:
    """(tokens before the answer, the answer's)."""
    [learned] = np.nonzero(labels != IGNORED)
    begin, end = int(learned[0]), int(learned[-1]) + 1
    return ids[:begin].tolist(), ids[begin:end].tolist()


def within(limit: Limit, row: Row, prompt: list[int], answers: list[list[int]]) -> tuple[list[int], list[list[int]]]:
    """A prompt and its answers within the limit: answers are cut at the end, or (Left) the prompt at its beginning."""
    longest = len(prompt) + max(map(len, answers))
    if longest <= limit.tokens:
        return prompt, answers
    limit.refuse(row, longest)
    if limit.truncation == "Drop":
        return prompt, [[] for _ in answers]
    if limit.truncation == "Left" and not media_of(row.messages):
        prompt = prompt[longest - limit.tokens :]
    room = max(0, limit.tokens - len(prompt)) if prompt else 0
    return prompt, [answer[:room] for answer in answers]


def answered(
    rows: Sequence[Row], masker: Masker, limit: Limit, rejected: bool
) -> Iterator[tuple[int, Row, int, list[int], list[list[int]]]]:
    """(place of its row, what is rendered in it, tokens before they are cut, prompt, answers) of each of `rows`. There
    are no answers where one of them has no room within the limit.
    """
    coded = list(masker.tokens(rows))
    sides = [[last_turn(one.ids, one.labels) for one in coded]]
    if rejected:
        worse = masker.tokens([replace(row, messages=row.rejected) for row in rows])
        sides.append([last_turn(one.ids, one.labels) for one in worse])
    for both, (place, shown, *_) in zip(zip(*sides, strict=True), coded, strict=True):
        # Tokens may merge across the prompt's end: the prompt is what is the same on all sides.
        prompt = common([before for before, _ in both])
        whole = [(before + answer)[len(prompt) :] for before, answer in both]
        length = len(prompt) + max(map(len, whole))
        prompt, answers = within(limit, shown, prompt, whole)
        yield place, shown, length, prompt, answers if all(answers) else []


def split_answers(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerFast,
    limit: Limit,
    rejected: bool = False,
    cache: Cache | None = None,
) -> Answers:
    """The last assistant's turn of `rows`, and with `rejected` the worse one after the same prompt, within the limit in
    all. Rows without an answer within it are left out.
    """
    need_template(rows, tokenizer)
    masker = Masker(tokenizer, "LastAssistant")

    def make(notes: Notes) -> Iterator[Any]:
        from pyarrow import array, int32, list_, record_batch

        notes |= {"cut": 0, "dropped": 0, "media": False}
        for begin in range(0, len(rows), BATCH):
            batch = rows[begin : begin + BATCH]
            columns: dict[str, list[Any]] = {"prompt": [], "answers": [], "row": [], "turns": []}
            for place, shown, length, prompt, answers in answered(batch, masker, limit, rejected):
                notes["cut"] += length > limit.tokens
                if not answers:
                    notes["dropped"] += 1
                    continue
                notes["media"] |= bool(media_of(shown.messages))
                for name, value in zip(columns, (prompt, answers, begin + place, len(shown.messages)), strict=True):
                    columns[name].append(value)
            types = {"prompt": list_(int32()), "answers": list_(list_(int32())), "row": int32(), "turns": int32()}
            yield record_batch({name: array(values, types[name]) for name, values in columns.items()})

    table, notes = kept(rows, masker, "answers", [asdict(limit), rejected], make, cache)
    if not len(table):
        raise DataError(
            f"no answer is left of {len(rows)} rows within spec.training.maxLength {limit.tokens}: raise it"
        )
    found: dict[str, Any] = table.to_dict()
    numbers = None
    if notes["media"]:
        places = zip(found["row"], found["turns"], strict=True)
        numbers = numbers_of([replace(rows[at], messages=rows[at].messages[:turns]) for at, turns in places], tokenizer)
    answers = [tuple(one) for one in found["answers"]]
    media = {"media": numbers} if numbers else {}
    return Answers(found["prompt"], answers, found["row"], media, notes["cut"], notes["dropped"])
