"""Datasets: files -> rows in one form, by method (forms.py). Every error names file, row, what was found and what
was expected. Nothing of torch is needed here.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from tunesmith.api.methods import MethodType
from tunesmith.training.plan import DatasetPlan, ValidationPlan

from tunesmith_trainer.errors import DataError
from tunesmith_trainer.files import Split, data_files, kind_of, read_file
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
ROLES = {
    "system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
    "bot": "assistant", "model": "assistant", "tool": "tool", "tool_response": "tool", "observation": "tool",
}  # fmt: skip

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
class SourceFile:
    """A file that rows came from, for the artefact's manifest."""

    uri: str
    digest: str


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

        for name in ("messages", "query", "response", "system", "text"):
            column = getattr(self.dataset.columns, name)
            if column is not None and column not in found:
                self.fail(where, f"no column {column!r}", found, f"it, as {self.label}.columns.{name} names it")
        form: Callable[[Reader, str, dict[str, Any]], Row] = FORMS.get(self.method, Reader.conversation)
        return attach(self, form(self, where, found), found, folder)

    def conversation(self, where: str, found: dict[str, Any], answer: bool = True) -> Row:
        """A conversation or a text; without `answer`, a question may stand alone."""
        columns = self.dataset.columns
        messages = columns.messages or first(MESSAGES, found)
        query, response = columns.query or first(QUERY, found), columns.response
        text = columns.text or first(TEXT, found)
        if columns.text or (text and not columns.query and not messages and (self.plain or not query)):
            return Row(where, text=self.string(where, found, text or "", "text"))
        tools = found.get("tools")
        if isinstance(tools, str):
            try:
                tools = json.loads(tools) if tools.strip() else None
            except ValueError:
                self.fail(where, "tools is no JSON", found, "a list of tools")
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
        turns = [{"role": "user", "content": asked}]
        if response:
            turns.append({"role": "assistant", "content": self.string(where, found, response, "answer")})
        return Row(where, messages=(*self.system(where, found, turns), *turns), tools=tools or None)

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
        for number, item in enumerate(value):
            at = f"{column}[{number}]"
            if not isinstance(item, dict) or not ({"role", "from"} & item.keys()):
                self.fail(where, f"{at} is no message", found, 'an object like {"role": "user", "content": "…"}')
            named = item.get("role", item.get("from"))
            role = ROLES.get(str(named))
            if role is None:
                self.fail(where, f"{at} has the role {named!r}", found, f"one of {sorted(ROLES)}")
            more = {k: v for k, v in item.items() if k not in ("role", "from", "content", "value") and v is not None}
            content = item.get("content", item.get("value"))
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

    def string(self, where: str, found: dict[str, Any], column: str, what: str) -> str:
        """A column's text, with the dataset's variables filled in."""
        value = found[column]
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
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


def first(names: Sequence[str], found: dict[str, Any]) -> str | None:
    """The first of `names` that is a column with a value; else the first that is a column."""
    there = [name for name in names if name in found]
    return next((name for name in there if found[name] is not None), there[0] if there else None)


def draw(rows: list[Row], sample: int | None, seed: str) -> list[Row]:
    """`sample` rows without repetition; where there are fewer, all of them as often as it takes."""
    if sample is None:
        return rows
    order = random.Random(seed)
    drawn: list[Row] = []
    while len(drawn) < sample:
        drawn += order.sample(rows, min(len(rows), sample - len(drawn)))
    return drawn


@dataclass(frozen=True)
class Data:
    """What a plan's datasets hold."""

    rows: Sequence[Row]
    """To learn from, one dataset after the other."""
    validation: Sequence[Row]
    """To evaluate on; empty where the plan keeps nothing aside."""
    sources: list[SourceFile]


def read_datasets(
    datasets: Sequence[DatasetPlan], method: MethodType, seed: int, validation: ValidationPlan | None = None
) -> Data:
    """All rows of a plan's datasets."""
    kept = validation or ValidationPlan()
    sources: list[SourceFile] = []
    every = [read_dataset(d, f"datasets[{i}]", method, "train", sources) for i, d in enumerate(datasets)]
    held = apart([len(rows) for rows in every], kept.split, seed)
    learned: list[Row] = []
    for i, (dataset, rows) in enumerate(zip(datasets, every, strict=True)):
        left = [row for number, row in enumerate(rows) if number not in held[i]]
        learned += draw(left, dataset.sample, f"{seed}:{i}")
    measured = [rows[number] for rows, numbers in zip(every, held, strict=True) for number in sorted(numbers)]
    for i, dataset in enumerate(kept.datasets):
        rows = read_dataset(dataset, f"validation.datasets[{i}]", method, "validation", sources)
        measured += draw(rows, dataset.sample, f"{seed}:{i}")
    return Data(learned, measured, sources)


def read_dataset(
    dataset: DatasetPlan, label: str, method: MethodType, split: Split, sources: list[SourceFile]
) -> list[Row]:
    """The rows of one dataset. Its files are added to `sources`."""
    reader = Reader(label, dataset, method)
    rows: list[Row] = []
    for path, uri in data_files(dataset, label, split):
        rows += [
            reader.row(f"{label} {uri} row {n}", found, path.parent)
            for n, found in read_file(path, f"{label} {uri}", uri)
        ]
        with path.open("rb") as file:
            sources.append(SourceFile(uri, "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()))
    if not rows:
        raise DataError(f"{label} {dataset.uri}: there are no rows. Give a dataset with at least one row")
    for name in unfilled(rows):
        print(f"{label} {dataset.uri}: rows hold {{{{{name}}}}}; to fill it set {label}.variables.{name}")
    return rows


def apart(counts: Sequence[int], split: float | None, seed: int) -> list[set[int]]:
    """The rows of each dataset that are kept aside: a part of each, or so many in all, drawn by the seed. Something is
    left to learn from.
    """
    if not split:
        return [set() for _ in counts]
    if split < 1:
        sizes = [min(max(1, round(count * split)), count - 1) for count in counts]
        return [
            set(random.Random(f"split:{seed}:{i}").sample(range(count), size))
            for i, (count, size) in enumerate(zip(counts, sizes, strict=True))
        ]
    total, size = sum(counts), int(split)
    if size >= total:
        raise DataError(f"spec.validation.split: {size} of {total} rows leave none to learn from: use fewer")
    drawn = random.Random(f"split:{seed}").sample(range(total), size)
    bounds = [sum(counts[:i]) for i in range(len(counts) + 1)]
    return [{number - begin for number in drawn if begin <= number < end} for begin, end in pairwise(bounds)]


def unfilled(rows: Sequence[Row]) -> list[str]:
    """Names that stand in double braces in the first rows after filling: likely forgotten variables."""
    texts = (str(m["content"]) for row in rows[:100] for m in (*row.messages, {"content": row.text}))
    return sorted({name for text in texts for name in re.findall(r"\{\{\s*([A-Z][A-Z0-9_]*)\s*\}\}", text)})
