"""Columns of a file -> rows in one form, by method (forms.py). Every error names file, row, what was found and what was
expected.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from tunesmith.api.methods import MethodType
from tunesmith.training.plan import DatasetPlan

from tunesmith_trainer.agents import normal, parsed
from tunesmith_trainer.errors import DataError
from tunesmith_trainer.files import kind_of
from tunesmith_trainer.media import attach, parts_of

# Names that people give their columns, the commonest first.
MESSAGES = ("messages", "conversations", "conversation")
QUERY = ("query", "prompt", "input", "instruction", "question", "problem")
RESPONSE = (
    "response", "answer", "output", "targets", "target", "answer_key", "answers", "solution", "text", "completion",
    "content",
)  # fmt: skip
SYSTEM = ("system", "system_prompt")
TEXT = ("text", "content")
TOLD = "chat_template_kwargs"
HEAVIEST = 1000
"""The most that a turn's loss is multiplied by."""
ROLES = {
    "system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
    "bot": "assistant", "model": "assistant", "tool": "tool", "tool_response": "tool", "observation": "tool",
}  # fmt: skip

COLUMNS = ("messages", "query", "response", "system", "text", "rejected", "label", "tools")
RENAMED = {"rejected": "rejected_response", "label": "label", "tools": "tools"}
"""Columns that are looked for under one name only."""

Message = dict[str, Any]
Content = str | tuple[Message, ...]
"""Plain text, or a conversation."""


@dataclass(frozen=True)
class Row:
    """One row, in one form whatever the file's: a conversation or a text."""

    where: str
    """For messages: `datasets[0] pvc://c/train.jsonl row 17`."""
    messages: tuple[Message, ...] = ()
    text: str = ""
    parts: tuple[Message, ...] = ()
    """Of a text with media: the text and the media in their order (media.py)."""
    tools: list[Any] | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """What the row tells the chat template beside its messages."""
    extra: dict[str, Any] = field(default_factory=dict)
    """The row's other columns."""
    rejected: tuple[Message, ...] = ()
    """The conversation with the worse answer."""
    margin: float | None = None
    """By how much the better answer is better."""
    label: Any = None
    """As it stands in the file."""
    positives: tuple[Content, ...] = ()
    negatives: tuple[Content, ...] = ()


@dataclass(frozen=True)
class Reader:
    """Turns the rows of one dataset into Rows."""

    label: str
    dataset: DatasetPlan
    method: MethodType

    @property
    def plain(self) -> bool:
        """Whether plain text is preferred where a row could be either."""
        return self.method in {"PreTraining", "Classification"}

    def row(self, where: str, found: dict[str, Any], folder: Path = Path()) -> Row:
        """One Row from the columns of one row; paths of its media are relative to `folder`."""
        from tunesmith_trainer.forms import FORMS

        for name in COLUMNS:
            column = getattr(self.dataset.columns, name)
            if column is not None and column not in found:
                self.fail(where, f"no column {column!r}", found, f"it, as {self.label}.columns.{name} names it")
        for name, usual in RENAMED.items():
            if column := getattr(self.dataset.columns, name):
                worse = "rejected_messages" if name == "rejected" and isinstance(found[column], list) else usual
                found = {**{k: v for k, v in found.items() if k != column}, worse: found[column]}
        if found.get("tools"):
            found = {**found, "tools": self.tools(where, found)}
        told = parsed(found.get(TOLD)) or {}
        if not isinstance(told, dict):
            self.fail(where, f"{TOLD} is {kind_of(told)}", found, "an object with the template's arguments")
        found = {name: value for name, value in found.items() if name != TOLD}
        form: Callable[[Reader, str, dict[str, Any]], Row] = FORMS.get(self.method, Reader.conversation)
        return replace(attach(self, form(self, where, found), found, folder), chat_template_kwargs=told)

    def tools(self, where: str, found: dict[str, Any]) -> list[Any]:
        """The tools of a row, which may be JSON, as a whole or each of them."""
        tools = parsed(found["tools"])
        if isinstance(tools, str) and not tools.strip():
            return []
        if not isinstance(tools, list) or any(not isinstance(one, dict) for one in map(parsed, tools)):
            self.fail(where, f"tools is {kind_of(tools)}", found, "a list of tools, each an object with its function")
        return [parsed(one) for one in tools]

    def conversation(self, where: str, found: dict[str, Any], answer: bool = True) -> Row:
        """A conversation or a text; without `answer`, a question may stand alone."""
        columns = self.dataset.columns
        messages = columns.messages or first(MESSAGES, found)
        query, response = columns.query or first(QUERY, found), columns.response
        text = columns.text or first(TEXT, found)
        if columns.text or (text and not columns.query and not messages and (self.plain or not query)):
            return Row(where, text=self.string(where, found, text or "", "text"))
        tools = found.get("tools")
        if messages and not columns.query:
            turns = self.turns(where, found[messages], messages, found)
            return Row(where, messages=(*self.system(where, found, turns), *turns), tools=tools or None)
        if answer:
            response = response or first([name for name in RESPONSE if name != query], found)
        if query is None and response is None:
            self.fail(where, "neither a conversation nor a question and an answer nor text", found,
                      f"messages, or one of {list(QUERY)} with one of {list(RESPONSE)}, or text; "
                      f"else name them in {self.label}.columns")  # fmt: skip
        if query is None:
            self.fail(
                where, "no question", found, f"a query in one of {list(QUERY)}; map it with {self.label}.columns.query"
            )
        if query == "input" and "instruction" in found and not columns.query:
            query = "instruction"
        if answer and (response is None or response == "input"):
            self.fail(
                where,
                "no answer",
                found,
                f"a response in one of {list(RESPONSE)}; map it with {self.label}.columns.response",
            )
        asked = self.string(where, found, query, "question")
        if query == "instruction" and found.get("input"):
            asked += "\n" + self.string(where, found, "input", "input")
        turns = self.history(where, found)
        turns.append({"role": "user", "content": asked})
        if response:
            turns.append({"role": "assistant", "content": self.string(where, found, response, "answer")})
        return Row(where, messages=(*self.system(where, found, turns), *turns), tools=tools or None)

    def history(self, where: str, found: dict[str, Any]) -> list[Message]:
        """Earlier turns: pairs of a question and an answer."""
        turns: list[Message] = []
        for pair in parsed(found.get("history")) or []:
            if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(one, str) for one in pair):
                self.fail(where, "history has what is no pair", found, "pairs of a question and its answer")
            for role, content in zip(("user", "assistant"), pair, strict=True):
                turns.append({"role": role, "content": self.fill(content)})
        return turns

    def system(self, where: str, found: dict[str, Any], turns: Sequence[Message]) -> list[Message]:
        """The system prompt of a row's own column, unless the conversation begins with one."""
        column = self.dataset.columns.system or first(SYSTEM, found)
        if not column or not found[column] or turns[0]["role"] == "system":
            return []
        return [{"role": "system", "content": self.string(where, found, column, "system prompt")}]

    def turns(self, where: str, value: object, column: str, found: dict[str, Any]) -> list[Message]:
        """The messages of a conversation, in OpenAI's form."""
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError:
                self.fail(where, f"{column} is text", found, "a list of messages")
        if not isinstance(value, list) or not value:
            self.fail(where, f"{column} is {'empty' if value == [] else kind_of(value)}", found, "a list of messages")
        turns: list[Message] = []
        spoken = [self.spoken(where, item, f"{column}[{number}]", found) for number, item in enumerate(value)]
        for number, item in enumerate(normal(spoken)):
            at, named = f"{column}[{number}]", item.get("role")
            role = (self.dataset.columns.roles or {}).get(str(named)) or ROLES.get(str(named))
            if role is None:
                expected = f"one of {sorted(ROLES)}; or map it with {self.label}.columns.roles"
                self.fail(where, f"{at} has the role {named!r}", found, expected)
            more = {k: v for k, v in item.items() if k not in ("role", "content") and v is not None}
            if (loss := learned(more)) is not None:
                if role != "assistant" or not (isinstance(loss, int | float) and 0 <= loss <= HEAVIEST):
                    expected = f"true, false or a number from 0 to {HEAVIEST}, at an assistant's turn"
                    self.fail(where, f"{at} has the loss {loss!r}", found, expected)
                if self.method == "SFT":
                    more["loss"] = bool(loss) if loss in (0, 1) else float(loss)
            content = item.get("content")
            if isinstance(content, list):
                parts = parts_of(content)
                if isinstance(parts, str):
                    self.fail(where, f"{at}: {parts}", found, "a text, or parts of text and media")
                plain = all(part["type"] == "text" for part in parts)
                content = "".join(part["text"] for part in parts) if plain else parts
            if content is None and more.get("tool_calls"):
                content = ""
            if isinstance(content, list):
                content = [{**p, "text": self.fill(p["text"])} if p["type"] == "text" else p for p in content]
                turns.append({"role": role, "content": content, **more})
                continue
            if not isinstance(content, str) or (
                not content.strip() and role == "assistant" and not more.get("tool_calls")
            ):
                self.fail(where, f"{at} has no content", found, "text in content")
            turns.append({"role": role, "content": self.fill(content), **more})
        return turns

    def spoken(self, where: str, item: object, at: str, found: dict[str, Any]) -> Message:
        """A message under the keys `role` and `content`."""
        columns = self.dataset.columns
        roles, contents = (columns.role or "role", "from"), (columns.content or "content", "value")
        if not isinstance(item, dict) or not item.keys() & set(roles):
            expected = f'an object like {{"{roles[0]}": "user", "{contents[0]}": "…"}}'
            self.fail(where, f"{at} is no message", found, expected)
        role = next(key for key in roles if key in item)
        content = next((key for key in contents if item.get(key) is not None), contents[0])
        others = {key: value for key, value in item.items() if key not in (*roles, *contents)}
        return {**others, "role": item[role], "content": item.get(content)}

    def string(self, where: str, found: dict[str, Any], column: str, what: str) -> str:
        """A column's text, with the dataset's variables filled in."""
        value = found[column]
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            value = str(value)  # what is no number stands for a value that is missing
        if not isinstance(value, str):
            self.fail(where, f"{column} is {kind_of(value)}", found, f"text as the {what}")
        if not value.strip():
            self.fail(where, f"{column} is empty", found, f"text as the {what}; leave the row out")
        return self.fill(value)

    def fill(self, text: str) -> str:
        """`text` with `{{KEY}}` replaced by the dataset's variables."""
        if not self.dataset.variables or "{{" not in text:
            return text
        return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda m: self.dataset.variables.get(m[1], m[0]), text)

    def fail(self, where: str, problem: str, found: dict[str, Any], expected: str) -> NoReturn:
        """Refuse a row."""
        raise DataError(f"{where}: {problem}: found columns {list(found)}; expected {expected}")


def learned(message: Message) -> Any:
    """What a message's loss is multiplied by, taken out of it: `loss`, or OpenAI's `weight`; else None."""
    said = [message.pop(key) for key in ("loss", "loss_scale", "weight") if key in message]
    return said[0] if said else None


def first(names: Sequence[str], found: dict[str, Any]) -> str | None:
    """The first of `names` that is a column with a value; else the first that is a column."""
    there = [name for name in names if name in found]
    return next((name for name in there if found[name] is not None), there[0] if there else None)


def unfilled(rows: Sequence[Row]) -> list[str]:
    """Names that stand in double braces in the first rows after filling: likely forgotten variables."""
    texts = (str(m["content"]) for row in rows[:100] for m in (*row.messages, {"content": row.text}))
    return sorted({name for text in texts for name in re.findall(r"\{\{\s*([A-Z][A-Z0-9_]*)\s*\}\}", text)})
