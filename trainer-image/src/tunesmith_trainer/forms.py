"""What a row looks like to the methods that need more of it than a conversation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from tunesmith.api.methods import MethodType

from tunesmith_trainer.data import MESSAGES, QUERY, RESPONSE, SYSTEM, Content, Message, Reader, Row, first
from tunesmith_trainer.files import kind_of

Found = dict[str, Any]
LABEL = ("label", "labels", "score", "similarity")
ANCHOR = ("query", "anchor", "sentence1", "sentence", "question", "prompt", "text")
POSITIVE = ("positive_messages", "positive", "positives", "pos", "sentence2", "document", "response", "answer")
NEGATIVE = ("negative_messages", "negative", "negatives", "neg", "rejected_response")
WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def preference(reader: Reader, where: str, found: Found) -> Row:
    """A conversation and its worse answer: `chosen` and `rejected`, as texts after a question or as messages; or an
    answered conversation and `rejected_response` or `rejected_messages`.
    """
    margin = number(reader, where, found, "margin") if found.get("margin") is not None else None
    if "chosen" in found:
        if found.get("rejected") is None or found["chosen"] is None:
            reader.fail(where, "no rejected answer beside chosen", found, "chosen and rejected, each text or messages")
        if isinstance(found["chosen"], str):
            row = asked(reader, where, found)
            better, worse = (
                (*row.messages, {"role": "assistant", "content": reader.string(where, found, name, "answer")})
                for name in ("chosen", "rejected")
            )
            return replace(row, messages=better, rejected=worse, margin=margin)
        better, worse = (tuple(reader.turns(where, found[name], name, found)) for name in ("chosen", "rejected"))
        head: tuple[Message, ...] = ()
        if better[0]["role"] == "assistant":  # the answers alone
            row = asked(reader, where, found)
            head, tools = row.messages, row.tools
        else:
            head, tools = tuple(reader.system(where, found, better)), found.get("tools")
        return compared(reader, Row(where, (*head, *better), tools=tools, margin=margin), (*head, *worse), found)
    row = reader.conversation(where, found)
    if not row.messages or row.messages[-1]["role"] != "assistant":
        reader.fail(where, "no answer at the conversation's end", found, "the better answer as the last message")
    if found.get("rejected_messages") is not None:
        turns = tuple(reader.turns(where, found["rejected_messages"], "rejected_messages", found))
        if turns[0]["role"] == "assistant":
            turns = (*before_answer(row.messages), *turns)
        elif turns[0]["role"] != "system" and row.messages[0]["role"] == "system":
            turns = (row.messages[0], *turns)
        return compared(reader, replace(row, margin=margin), turns, found)
    if found.get("rejected_response") is None:
        reader.fail(where, "no rejected answer", found, "rejected_response, rejected_messages, or chosen and rejected")
    answer = {"role": "assistant", "content": reader.string(where, found, "rejected_response", "rejected answer")}
    return compared(reader, replace(row, margin=margin), (*before_answer(row.messages), answer), found)


def before_answer(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages before the assistant's last turn."""
    return messages[:-1]


def compared(reader: Reader, row: Row, rejected: tuple[Message, ...], found: Found) -> Row:
    """`row` with its rejected side, after a look that both answer the same."""
    for name, side in (("chosen", row.messages), ("rejected", rejected)):
        if side[-1]["role"] != "assistant":
            reader.fail(row.where, f"{name} does not end with an answer", found, "the assistant's turn as the last")
    if row.messages[:-1] != rejected[:-1]:
        reader.fail(row.where, "the two answers follow different messages", found, "the same messages before both")
    return replace(row, rejected=rejected)


def asked(reader: Reader, where: str, found: Found) -> Row:
    """The conversation up to the answer."""
    named = reader.dataset.columns.query or first(QUERY, found)
    if named and not isinstance(found[named], str):  # prompt as messages
        turns = reader.turns(where, found[named], named, found)
        return Row(where, (*reader.system(where, found, turns), *turns), tools=found.get("tools"))
    return reader.conversation(where, found, answer=False)


def judged(reader: Reader, where: str, found: Found) -> Row:
    """A conversation whose answer is good or bad."""
    row = reader.conversation(where, found)
    label = found.get("label")
    if isinstance(label, str):
        label = WORDS.get(label.strip().lower(), label)
    if isinstance(label, int | float) and label in (0, 1):
        label = bool(label)
    if not isinstance(label, bool):
        reader.fail(
            where, f"label is {kind_of(label) if 'label' in found else 'missing'}", found, "label true or false"
        )
    if not row.messages or row.messages[-1]["role"] != "assistant":
        reader.fail(where, "no answer at the conversation's end", found, "the answer that is judged as the last")
    return replace(row, label=label)


def prompted(reader: Reader, where: str, found: Found) -> Row:
    """A conversation that the model itself will answer, and all columns that are no part of it."""
    row = asked(reader, where, found)
    columns = reader.dataset.columns
    used = {columns.messages or first(MESSAGES, found), columns.system or first(SYSTEM, found), "tools"}
    if not first(MESSAGES, found) or columns.query:
        used |= {columns.query or first(QUERY, found)}
        if "instruction" in found:
            used |= {"instruction", "input"}
    return replace(row, extra={name: value for name, value in found.items() if name not in used})


def distilled(reader: Reader, where: str, found: Found) -> Row:
    """As `prompted`, with the answer where there is one."""
    row = prompted(reader, where, found)
    answer = reader.dataset.columns.response or first(RESPONSE, row.extra)
    if row.messages and row.messages[-1]["role"] != "assistant" and answer and found.get(answer) is not None:
        content = reader.string(where, found, answer, "answer")
        row = replace(row, messages=(*row.messages, {"role": "assistant", "content": content}))
    return row


def labelled(reader: Reader, where: str, found: Found) -> Row:
    """A text or a conversation with a label."""
    name = first(LABEL, found)
    if name is None or found[name] is None:
        reader.fail(where, "no label", found, f"one of {list(LABEL)}")
    columns = reader.dataset.columns
    kept = {key: value for key, value in found.items() if key != name}
    spoken = columns.messages or columns.query or first([*MESSAGES, *QUERY], kept)
    if not spoken and not columns.text and not first(("text", "content", "sentence"), kept):
        reader.fail(where, "no text", found, "text, messages or a query beside the label")
    if not spoken and "sentence" in kept and "text" not in kept and not columns.text:
        return Row(where, text=reader.string(where, found, "sentence", "text"), label=found[name])
    return replace(answered(reader, where, kept), label=found[name])


def answered(reader: Reader, where: str, found: Found) -> Row:
    """A conversation, whose answer may be missing."""
    has = reader.dataset.columns.response or first(RESPONSE[:2], found)
    return reader.conversation(where, found, answer=has is not None)


def similar(reader: Reader, where: str, found: Found) -> Row:
    """A text with texts that are like it, and texts that are not; or a pair with a label."""
    columns = reader.dataset.columns
    named = columns.messages or columns.query or first([*MESSAGES, *ANCHOR], found)
    if named is None or found[named] is None:
        reader.fail(where, "no query", found, f"one of {[*MESSAGES, *ANCHOR]}")
    anchor = content(reader, where, found, named, found[named])
    sides: list[tuple[Content, ...]] = []
    for names in ((columns.response,) if columns.response else POSITIVE, NEGATIVE):
        column = next((n for n in names if n in found and n != named and found[n] is not None), None)
        sides.append(several(reader, where, found, column) if column else ())
    if not sides[0]:
        reader.fail(where, "no positive", found, f"one of {list(POSITIVE)}")
    label = first(LABEL, found)
    value = number(reader, where, found, label) if label and found[label] is not None else None
    row = Row(where, label=value, positives=sides[0], negatives=sides[1])
    return replace(row, text=anchor) if isinstance(anchor, str) else replace(row, messages=anchor)


def several(reader: Reader, where: str, found: Found, column: str) -> tuple[Content, ...]:
    """One text or conversation, or a list of them."""
    value = found[column]
    if isinstance(value, str) and value.lstrip().startswith("[") and column.endswith(("messages", "s")):
        with suppress(ValueError):
            value = json.loads(value)
    if not isinstance(value, list):
        return (content(reader, where, found, column, value),)
    if value and all(isinstance(one, dict) for one in value):
        return (content(reader, where, found, column, value),)
    return tuple(content(reader, where, found, column, one) for one in value)


def content(reader: Reader, where: str, found: Found, column: str, value: object) -> Content:
    """A text, or a conversation."""
    if isinstance(value, list):
        return tuple(reader.turns(where, value, column, found))
    return reader.string(where, {**found, column: value}, column, "text")


def number(reader: Reader, where: str, found: Found, column: str) -> float:
    """A column's number."""
    with suppress(TypeError, ValueError):
        if math.isfinite(value := float(found[column])):
            return value
    reader.fail(where, f"{column} is {kind_of(found[column])} {found[column]!r}"[:200], found, "a number")


FORMS: dict[MethodType, Callable[[Reader, str, Found], Row]] = {
    **dict.fromkeys(("DPO", "CPO", "SimPO", "ORPO", "RewardModel"), preference),
    "KTO": judged,
    "GRPO": prompted,
    "PPO": prompted,
    "GKD": distilled,
    "Classification": labelled,
    "Embedding": similar,
    "Reranker": similar,
}
