"""Rows -> token ids and labels. What is learned is exact: the tokens that the model itself would write.

An assistant's turn begins where the model's chat template, asked for a generation prompt over the turns before it,
ends; and it ends with the end-of-turn token. Both are found by rendering prefixes of the conversation. Where the
whole rendering does not begin with the rendering of a prefix, the template rewrites history (some drop earlier
reasoning); then TRL's training variant of that template is used, which marks the assistant's turns, and where there
is none the row is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tunesmith_trainer.data import Message, Row
from tunesmith_trainer.errors import DataError, ModelError
from tunesmith_trainer.media import media_of, text_of
from tunesmith_trainer.multimodal import processor_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LossOn = Literal["Assistant", "LastAssistant", "All"]
Span = tuple[int, int]
IGNORED = -100
BATCH = 256

Ids = np.ndarray[tuple[int], np.dtype[np.int32]]


@dataclass
class Tokens:
    """Tokenised rows: token ids and labels, one array of each per row and of equal length. A label is the token
    itself where it is learned, else -100.
    """

    input_ids: list[Ids] = field(default_factory=list)
    labels: list[Ids] = field(default_factory=list)
    cut: int = 0
    """Rows that were longer than the limit."""
    dropped: int = 0
    """Rows of which nothing to learn was left within the limit, or that would have lost part of an image."""
    media: list[list[int]] | None = None
    """The numbers of each row's media, where there are any."""


class HistoryRewritten(Exception):
    """The template renders a turn differently once others follow."""


@dataclass(frozen=True)
class Masker:
    """Finds the learned parts of a row's text by the tokenizer's chat template."""

    tokenizer: PreTrainedTokenizerFast
    loss_on: LossOn

    def render(self, row: Row, count: int, prompt: bool = False) -> str:
        """The first `count` messages as the model sees them; with `prompt`, up to where it would begin to answer."""
        text = self.tokenizer.apply_chat_template(
            readable(row.messages[:count], self.tokenizer), tools=row.tools, tokenize=False,
            add_generation_prompt=prompt,
        )  # fmt: skip
        return str(text)

    def spans(self, row: Row) -> tuple[str, list[Span]]:
        """The row's text and the character ranges in it that are learned."""
        if not row.messages:
            if self.loss_on != "All":
                raise DataError(
                    f"{row.where}: it is plain text, which has no assistant's turn; use spec.method.type PreTraining"
                )
            text, eos = raw(row, self.tokenizer), str(self.tokenizer.eos_token)
            text = text if text.endswith(eos) else text + eos
            return text, [(0, len(text))]
        turns = [i for i, message in enumerate(row.messages) if message["role"] == "assistant"]
        if self.loss_on != "All":
            roles = [message["role"] for message in row.messages]
            if not turns:
                raise DataError(f"{row.where}: no assistant's turn to learn from; found the roles {roles}")
            if media_of([row.messages[turn] for turn in turns]):
                raise DataError(
                    f"{row.where}: an assistant's turn has media, which a model can be trained to read, but not to "
                    "write: move them to the user's turns"
                )
            if turns[0] == 0:
                raise DataError(
                    f"{row.where}: the assistant begins; expected a user's turn before it; found the roles {roles}"
                )
        try:
            with template_errors(row):
                whole = self.render(row, len(row.messages))
                if self.loss_on == "All":
                    return self.ended(whole, [(0, len(whole))])
                chosen = turns[-1:] if self.loss_on == "LastAssistant" else turns
                text, spans = self.ended(whole, [self.span(row, whole, turn) for turn in chosen])
                return text, wanted(row, chosen, spans)
        except HistoryRewritten:
            return self.marked(row)

    def span(self, row: Row, whole: str, turn: int) -> Span:
        """The range of one assistant's turn in `whole`."""
        before = self.render(row, turn, prompt=True)
        after = self.render(row, turn + 1)
        if not (whole.startswith(after) and after.startswith(before)):
            raise HistoryRewritten
        # White space after the end-of-turn token is the template's, not the model's.
        stripped = after.rstrip()
        return len(before), len(stripped) if self.ends_turn(stripped) and len(stripped) > len(before) else len(after)

    def marked(self, row: Row) -> tuple[str, list[Span]]:
        """As `spans`, by a training variant of the template that marks the assistant's turns."""
        from transformers.utils.chat_template_utils import render_jinja_template
        from trl.chat_template_utils import get_training_chat_template

        try:
            template = get_training_chat_template(self.tokenizer) or self.tokenizer.chat_template
        except ValueError:
            raise DataError(
                f"{row.where}: the model's chat template renders earlier turns differently once others follow, so that "
                "it is not exact which tokens are learned; split the conversation into single turns, or set "
                "spec.method.sft.lossOn to LastAssistant or All"
            ) from None
        render: Any = render_jinja_template
        texts, marks = render(
            [readable(row.messages, self.tokenizer)],
            tools=row.tools,
            chat_template=template,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        spans = [(int(start), int(end)) for start, end in marks[0]]
        text, spans = self.ended(texts[0], spans[-1:] if self.loss_on == "LastAssistant" else spans)
        turns = [i for i, message in enumerate(row.messages) if message["role"] == "assistant"][-len(spans) :]
        return text, wanted(row, turns, spans)

    def ends_turn(self, text: str) -> bool:
        """Whether `text` ends with a special token."""
        return text.endswith((*self.tokenizer.get_added_vocab(), str(self.tokenizer.eos_token)))

    def ended(self, text: str, spans: list[Span]) -> tuple[str, list[Span]]:
        """`text` and `spans`, with the end-of-sequence token added where a template leaves the last turn open: the
        model must learn to stop.
        """
        start, end = spans[-1]
        if end < len(text.rstrip()) or self.ends_turn(text.rstrip()):
            return text, spans
        eos = str(self.tokenizer.eos_token)
        return text + eos, [*spans[:-1], (start, len(text) + len(eos))]

    def tokens(self, rows: Sequence[Row]) -> Iterator[tuple[Ids, Ids]]:
        """(ids, labels) of each row. Conversations carry the template's special tokens, text the tokenizer's own."""
        found = [expanded(row, *self.spans(row), self.tokenizer) for row in rows]
        for special in (False, True):
            if not any(bool(row.text) == special for row in rows):
                continue
            coded = self.tokenizer(
                [text for text, _ in found],
                add_special_tokens=special,
                return_offsets_mapping=True,
                return_attention_mask=False,
            )
            for row, (_, spans), ids, offsets in zip(
                rows, found, coded["input_ids"], coded["offset_mapping"], strict=True
            ):
                if bool(row.text) == special:
                    yield mask(ids, offsets, spans)


def wanted(row: Row, turns: Sequence[int], spans: list[Span]) -> list[Span]:
    """The spans of those turns that the row does not exclude by `loss: false`."""
    if all(row.messages[turn].get("loss", True) for turn in turns):
        return spans
    if len(turns) != len(spans):
        raise DataError(
            f"{row.where}: the chat template joins assistant's turns, so that `loss` cannot tell them apart"
        )
    return [span for turn, span in zip(turns, spans, strict=True) if row.messages[turn].get("loss", True)]


def mask(ids: list[int], offsets: list[Span], spans: list[Span]) -> tuple[Ids, Ids]:
    """(ids, labels): a token is learned where its characters overlap a span. The first token is never predicted."""
    tokens = np.asarray(ids, dtype=np.int32)
    at = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    learned = np.zeros(len(tokens), dtype=bool)
    for start, end in spans:
        learned |= (at[:, 0] < end) & (at[:, 1] > start)
    if len(learned):
        learned[0] = False
    return tokens, np.where(learned, tokens, IGNORED).astype(np.int32)


def readable(messages: Sequence[Message], tokenizer: PreTrainedTokenizerFast) -> list[Message]:
    """Messages as the tokenizer's chat template wants them."""
    if multimodal := processor_of(tokenizer):
        return list(multimodal.messages(messages))
    return [m if isinstance(m["content"], str) else {**m, "content": text_of(m["content"])} for m in messages]


def raw(row: Row, tokenizer: PreTrainedTokenizerFast) -> str:
    """A row of plain text, with placeholders for its media."""
    multimodal = processor_of(tokenizer, row, media_of("", row.parts))
    return str(multimodal.raw(row.parts)) if row.parts and multimodal else row.text


def expanded(row: Row, text: str, spans: list[Span], tokenizer: PreTrainedTokenizerFast) -> tuple[str, list[Span]]:
    """A row's text and spans with as many placeholders as its media take."""
    media = media_of(row.messages, row.parts)
    multimodal = processor_of(tokenizer, row, media)
    found: tuple[str, list[Span]] = multimodal.expand(text, spans, media, row.where) if media else (text, spans)
    return found


def numbers_of(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> list[list[int]] | None:
    """The media of rows, by their numbers (multimodal.py); None where no row has any."""
    found = [media_of(row.messages, row.parts) for row in rows]
    if not any(found):
        return None
    multimodal = processor_of(tokenizer)
    return [multimodal.numbers(media) for media in found]


@dataclass
class Answers:
    """Prompts and answers as token ids; an answer ends with the end-of-turn token."""

    prompts: list[list[int]] = field(default_factory=list)
    answers: list[tuple[list[int], ...]] = field(default_factory=list)
    """The answers to each prompt, as many for all."""
    kept: list[int] = field(default_factory=list)
    """Which rows they are."""
    media: dict[str, list[list[int]]] = field(default_factory=dict)
    """A column with the numbers of their media, if any has some."""
    cut: int = 0
    dropped: int = 0

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


def split_answers(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, max_length: int, rejected: bool = False
) -> Answers:
    """The last assistant's turn of `rows`, and with `rejected` the worse one after the same prompt, cut at the end to
    `max_length` tokens in all. Rows without an answer within it are left out.
    """
    need_template(rows, tokenizer)
    masker, result = Masker(tokenizer, "LastAssistant"), Answers()
    for begin in range(0, len(rows), BATCH):
        batch = rows[begin : begin + BATCH]
        sides = [[last_turn(*one) for one in masker.tokens(batch)]]
        if rejected:
            sides.append([last_turn(*one) for one in masker.tokens([replace(r, messages=r.rejected) for r in batch])])
        for number, row in enumerate(zip(*sides, strict=True), begin):
            # Tokens may merge across the prompt's end: the prompt is what is the same on all sides.
            prompt = common([before for before, _ in row])
            answers = [(before + answer)[len(prompt) :] for before, answer in row]
            room = max_length - len(prompt)
            result.cut += any(len(answer) > room for answer in answers)
            answers = [answer[: max(room, 0)] for answer in answers]
            if all(answers):
                result.prompts.append(prompt)
                result.answers.append(tuple(answers))
                result.kept.append(number)
            else:
                result.dropped += 1
    if not result.kept:
        raise DataError(f"no answer is left of {len(rows)} rows within spec.training.maxLength {max_length}: raise it")
    if numbers := numbers_of([rows[number] for number in result.kept], tokenizer):
        result.media = {"media": numbers}
    return result


def common(sides: list[list[int]]) -> list[int]:
    """The longest beginning that all have."""
    length = 0
    for tokens in zip(*sides, strict=False):
        if len(set(tokens)) > 1:
            break
        length += 1
    return sides[0][:length]


@contextmanager
def template_errors(row: Row) -> Iterator[None]:
    """What a chat template raises, jinja's own or whatever it does with a row it did not expect, is the row's error."""
    try:
        yield
    except (DataError, ModelError, HistoryRewritten):
        raise
    except Exception as error:
        raise DataError(f"{row.where}: the model's chat template refuses it: {error}") from error


def need_template(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> None:
    """See that conversations can be rendered."""
    if any(row.messages for row in rows) and not tokenizer.chat_template:
        raise ModelError(
            "the model's tokenizer has no chat template, so that conversations cannot be rendered: use an instruction-"
            "tuned model, add a chat_template.jinja to it, or train on text rows"
        )


def tokenize(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, loss_on: LossOn, max_length: int) -> Tokens:
    """Ids and labels of `rows`, cut at the end to `max_length` tokens. Rows without labels are left out."""
    need_template(rows, tokenizer)
    masker, result, kept = Masker(tokenizer, loss_on), Tokens(), []
    for begin in range(0, len(rows), BATCH):
        batch = rows[begin : begin + BATCH]
        for row, (ids, labels) in zip(batch, masker.tokens(batch), strict=True):
            result.cut += len(ids) > max_length
            whole = len(ids) <= max_length or not media_of(row.messages, row.parts)
            ids, labels = ids[:max_length], labels[:max_length]
            if whole and (labels != IGNORED).any():
                result.input_ids.append(ids)
                result.labels.append(labels)
                kept.append(row)
            else:
                result.dropped += 1
    if not result.input_ids:
        raise DataError(
            f"nothing to learn is left of {len(rows)} rows within spec.training.maxLength {max_length} "
            f"({result.cut} of them are longer): raise it"
        )
    result.media = numbers_of(kept, tokenizer)
    return result


def columns(tokens: Tokens) -> dict[str, Any]:
    """`tokens` as columns of an Arrow table: int32 lists `input_ids` and `labels`."""
    import pyarrow as arrow

    lists = {"input_ids": tokens.input_ids, "labels": tokens.labels, "media": tokens.media}
    return {name: arrow.array(v, type=arrow.list_(arrow.int32())) for name, v in lists.items() if v is not None}
