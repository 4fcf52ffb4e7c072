"""Rows -> token ids and labels. What is learned is exact: the tokens that the model itself would write.

An assistant's turn begins where the model's chat template, asked for a generation prompt over the turns before it,
ends; and it ends with the end-of-turn token. Both are found by rendering prefixes of the conversation. Some templates
render a turn differently once others follow: they drop its reasoning, or close it otherwise. Where all that the model
would write still stands in the whole rendering, it is learned there; else the conversation up to that turn becomes a
text of its own, in which that turn alone is learned.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from tunesmith_trainer import chat
from tunesmith_trainer.chat import ANSWER, PROBE, THINK, template_errors
from tunesmith_trainer.data import Row
from tunesmith_trainer.errors import DataError
from tunesmith_trainer.media import media_of
from tunesmith_trainer.multimodal import processor_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LossOn = Literal["Assistant", "LastAssistant", "All"]
Span = tuple[int, int]
IGNORED = -100
BATCH = 256
NO_REASONING = re.compile(rf"\s*({THINK})?\s*{ANSWER}\n{{0,2}}")
"""What a template writes where a turn has no reasoning."""

Ids = np.ndarray[tuple[int], np.dtype[np.int32]]
Weights = np.ndarray[tuple[int], np.dtype[np.float32]]


@dataclass(frozen=True)
class Learned:
    """A text to learn from."""

    row: Row
    """What is rendered in it: a row, or the beginning of one."""
    text: str
    spans: list[Span]
    """The character ranges that are learned."""
    weights: Sequence[float] = ()
    """What the loss of each range is multiplied by; none: 1."""


class Coded(NamedTuple):
    """A text as tokens."""

    place: int
    """Of its row among those that were given."""
    row: Row
    """What is rendered in it."""
    ids: Ids
    labels: Ids
    weights: Weights
    """What each token's loss is multiplied by."""


@dataclass(frozen=True)
class Masker:
    """Finds the learned parts of a row's text by the tokenizer's chat template."""

    tokenizer: PreTrainedTokenizerFast
    loss_on: LossOn
    empty_reasoning: bool = True
    """Whether it is learned that a turn has no reasoning, where the template writes so."""

    @property
    def key(self) -> Any:
        """All that the labels depend on beside the rows, for a cache; None where a tokenizer does not say."""
        told = chat.digest_of(self.tokenizer)
        return told and [told, self.loss_on, self.empty_reasoning]

    def render(self, row: Row, count: int, prompt: bool = False) -> str:
        """The first `count` messages as the model sees them; with `prompt`, up to where it would begin to answer."""
        return chat.render(self.tokenizer, row, row.messages[:count], prompt)

    def texts(self, row: Row) -> list[Learned]:
        """What is learned of a row: one text, or several where the template renders turns differently once others
        follow.
        """
        if not row.messages:
            if self.loss_on != "All":
                raise DataError(
                    f"{row.where}: it is plain text, which has no assistant's turn; use spec.method.type PreTraining"
                )
            text, eos = raw(row, self.tokenizer), str(self.tokenizer.eos_token)
            text = text if text.endswith(eos) else text + eos
            return [Learned(row, text, [(0, len(text))])]
        if self.loss_on == "All":
            with template_errors(row):
                text = self.render(row, len(row.messages))
            return [self.ended(Learned(row, text, [(0, len(text))]))]
        turns = answers_of(row)
        chosen = [turn for turn in turns if row.messages[turn].get("loss", True)]
        if self.loss_on == "LastAssistant":
            chosen = [turn for turn in chosen if turn == turns[-1]]
        with template_errors(row):
            return [self.ended(one) for one in self.found(row, chosen)]

    def found(self, row: Row, turns: list[int]) -> Iterator[Learned]:
        """The texts in which these turns are learned."""
        whole = self.render(row, len(row.messages))
        spans = {turn: self.within(row, whole, turn) for turn in turns}
        here = {turn: span for turn, span in spans.items() if span}
        if here or not turns:
            yield Learned(row, whole, list(here.values()), [weight_of(row, turn) for turn in here])
        left = [turn for turn, span in spans.items() if span is None]
        if left and left[-1] == len(row.messages) - 1:  # the template never renders it as the model would write it
            text, span = self.alone(row, turn := left.pop())
            yield Learned(row, text, [span], [weight_of(row, turn)])
        if left:
            yield from self.found(replace(row, messages=row.messages[: left[-1] + 1]), left)

    def within(self, row: Row, whole: str, turn: int) -> Span | None:
        """The range of what the model would write as this turn in the rendering of all; None where it is not there."""
        text, (start, end) = self.alone(row, turn)
        if whole.startswith(text[:end]):
            following = (stop for stop in chat.chat_of(self.tokenizer).stops if whole.startswith(stop, end))
            return start, end if self.ends_turn(text[start:end]) else end + len(next(following, ""))
        there, own = self.located(row, whole, turn, len(row.messages)), self.located(row, text, turn, turn + 1)
        if there is None or own is None or not start <= own[0] < own[1] or whole[slice(*there)] != text[slice(*own)]:
            return None
        opening, closing = NO_REASONING.sub("", text[start : own[0]], count=1), text[own[1] : end]
        if not whole[: there[0]].endswith(opening):
            return None
        # How the turn ends is learned where it stands as the model would write it.
        return there[0] - len(opening), there[1] + (len(closing) if whole.startswith(closing, there[1]) else 0)

    def alone(self, row: Row, turn: int) -> tuple[str, Span]:
        """The text up to the end of a turn, nothing after it, and the range that the model would write."""
        before, after = self.render(row, turn, prompt=True), self.render(row, turn + 1)
        if not after.startswith(before):
            before, after = self.reasoned(row, turn, before, after)
        # White space after the end-of-turn token is the template's, not the model's; and so is what it closes the whole
        # text with.
        stripped, start = after.rstrip(), len(before)
        end = len(stripped) if self.ends_turn(stripped) and len(stripped) > start else len(after)
        if closed := self.closed_twice.search(after, start):
            end = closed.end(1)
        if not self.empty_reasoning and (nothing := NO_REASONING.match(after, start)):
            start = nothing.end()
        return after, (start, end)

    def reasoned(self, row: Row, turn: int, before: str, after: str) -> tuple[str, str]:
        """(prompt, the text with the answer) where the prompt opens a reasoning that the rendering of the turn does not
        have: the turn's own reasoning is put there; where it has none, the prompt ends before it.
        """
        message, opened = row.messages[turn], before.rstrip()
        reasoning, closed, answer = str(message["content"]).partition(ANSWER)
        if kept := message.get("reasoning_content"):
            reasoning, closed, answer = f"{kept}\n", ANSWER, f"\n\n{message['content']}"
        _, there, ending = self.probed(row, turn, turn + 1).partition(PROBE)
        if closed and there and opened.endswith(THINK):
            reasoning = reasoning.partition(THINK)[2] if THINK in reasoning else reasoning
            # The line's end is the prompt's.
            return before, before + reasoning.removeprefix(before[len(opened) :]) + closed + answer + ending
        shared = len(common([before, after]))
        least = len(common([self.render(row, turn), after]))
        while shared > least and not after[:shared].endswith(("\n", *self.tokenizer.get_added_vocab())):
            shared -= 1
        if not after[:shared].strip() or least < len(self.render(row, turn).rstrip()):
            raise DataError(
                f"{row.where}: the model's chat template renders the turns before the answer differently once it is "
                "there, so that it is not exact which tokens are learned; set spec.method.sft.lossOn to All"
            )
        return after[:shared], after

    def located(self, row: Row, text: str, turn: int, count: int) -> Span | None:
        """Where a turn's content stands in `text`, the rendering of the first `count` messages; None where that is more
        than its content.
        """
        before, there, after = self.probed(row, turn, count).partition(PROBE)
        fits = there and len(before) + len(after) <= len(text) and text.startswith(before) and text.endswith(after)
        return (len(before), len(text) - len(after)) if fits else None

    def probed(self, row: Row, turn: int, count: int) -> str:
        """The rendering of the first `count` messages with PROBE in the place of a turn's content."""
        probe = {k: v for k, v in row.messages[turn].items() if k not in ("reasoning_content", "thinking")}
        messages = (*row.messages[:turn], {**probe, "content": PROBE}, *row.messages[turn + 1 : count])
        return chat.render(self.tokenizer, row, messages)

    @cached_property
    def closed_twice(self) -> re.Pattern[str]:
        """Two special tokens apart at the end of a text; the first is a group."""
        known = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        special = "|".join(map(re.escape, known)) or "(?!)"
        return re.compile(rf"({special})\s+(?:{special})\s*$")

    def ends_turn(self, text: str) -> bool:
        """Whether `text` ends with a special token."""
        return text.endswith((*self.tokenizer.get_added_vocab(), str(self.tokenizer.eos_token)))

    def ended(self, one: Learned) -> Learned:
        """With the end-of-sequence token added where a template leaves the last turn open: the model must learn to
        stop.
        """
        if not one.spans:
            return one
        start, end = one.spans[-1]
        if end < len(one.text.rstrip()) or self.ends_turn(one.text.rstrip()):
            return one
        eos = str(self.tokenizer.eos_token)
        return replace(one, text=one.text + eos, spans=[*one.spans[:-1], (start, len(one.text) + len(eos))])

    def tokens(self, rows: Sequence[Row]) -> Iterator[Coded]:
        """Each row's texts as tokens. Conversations carry the template's special tokens, text the tokenizer's own."""
        every = [(place, expanded(one, self.tokenizer)) for place, row in enumerate(rows) for one in self.texts(row)]
        found = [one for _, one in every]
        coded: dict[int, tuple[Ids, Ids, Weights]] = {}
        for special in (False, True):
            chosen = [at for at, one in enumerate(found) if bool(one.row.text) == special]
            if not chosen:
                continue
            made = self.tokenizer(
                [found[at].text for at in chosen],
                add_special_tokens=special,
                return_offsets_mapping=True,
                return_attention_mask=False,
            )
            for at, ids, offsets in zip(chosen, made["input_ids"], made["offset_mapping"], strict=True):
                coded[at] = mask(ids, offsets, found[at].spans, found[at].weights)
        return (Coded(place, one.row, *coded[at]) for at, (place, one) in enumerate(every))


def answers_of(row: Row) -> list[int]:
    """The places of the assistant's turns of a conversation that can be learned from."""
    turns = [i for i, message in enumerate(row.messages) if message["role"] == "assistant"]
    roles = [message["role"] for message in row.messages]
    if not turns:
        raise DataError(f"{row.where}: no assistant's turn to learn from; found the roles {roles}")
    if media_of([row.messages[turn] for turn in turns]):
        raise DataError(
            f"{row.where}: an assistant's turn has media, which a model can be trained to read, but not to "
            "write: move them to the user's turns"
        )
    if turns[0] == 0:
        raise DataError(f"{row.where}: the assistant begins; expected a user's turn before it; found the roles {roles}")
    return turns


def weight_of(row: Row, turn: int) -> float:
    """What the loss of an assistant's turn is multiplied by."""
    return float(row.messages[turn].get("loss", True))


def mask(
    ids: list[int], offsets: list[Span], spans: list[Span], weights: Sequence[float] = ()
) -> tuple[Ids, Ids, Weights]:
    """(ids, labels, weights): a token is learned where its characters overlap a span, with the span's weight. The first
    token is never predicted.
    """
    tokens = np.asarray(ids, dtype=np.int32)
    at = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)
    learned = np.zeros(len(tokens), dtype=bool)
    weighed = np.ones(len(tokens), dtype=np.float32)
    for (start, end), weight in zip(spans, weights or [1.0] * len(spans), strict=True):
        inside = (at[:, 0] < end) & (at[:, 1] > start)
        learned |= inside
        weighed[inside] = weight
    if len(learned):
        learned[0] = False
    return tokens, np.where(learned, tokens, IGNORED).astype(np.int32), weighed


def raw(row: Row, tokenizer: PreTrainedTokenizerFast) -> str:
    """A row of plain text, with placeholders for its media."""
    multimodal = processor_of(tokenizer, row, media_of("", row.parts))
    return str(multimodal.raw(row.parts)) if row.parts and multimodal else row.text


def expanded(one: Learned, tokenizer: PreTrainedTokenizerFast) -> Learned:
    """A text and its spans with as many placeholders as its media take."""
    media = media_of(one.row.messages, one.row.parts)
    if not media:
        return one
    text, spans = processor_of(tokenizer).expand(one.text, one.spans, media, one.row.where)
    return replace(one, text=text, spans=spans)


def numbers_of(rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> list[list[int]] | None:
    """The media of rows, by their numbers (multimodal.py); None where no row has any."""
    found = [media_of(row.messages, row.parts) for row in rows]
    if not any(found):
        return None
    multimodal = processor_of(tokenizer)
    return [multimodal.numbers(media) for media in found]


def common(sides: Sequence[Any]) -> Any:
    """The longest beginning that all have."""
    length = 0
    for tokens in zip(*sides, strict=False):
        if len(set(tokens)) > 1:
            break
        length += 1
    return sides[0][:length]
