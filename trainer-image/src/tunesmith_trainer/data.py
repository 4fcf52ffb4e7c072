"""Datasets: files -> rows of a conversation or of plain text. Every error names file, row, what was found and what
was expected. Nothing of torch is needed here.
"""

from __future__ import annotations

import csv
import hashlib
import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from tunesmith.training.plan import DatasetPlan

from tunesmith_trainer.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
NOT_DATA = {"dataset_info.json", "dataset_infos.json", "state.json", "manifest.json", "config.json"}

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


@dataclass(frozen=True)
class Row:
    """One row, in one form whatever the file's: a conversation or a text."""

    where: str
    """For messages: `datasets[0] pvc://c/train.jsonl row 17`."""
    messages: tuple[Message, ...] = ()
    text: str = ""
    tools: list[Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    """The row's other columns."""


@dataclass(frozen=True)
class SourceFile:
    """A file that rows came from, for the artefact's manifest."""

    uri: str
    digest: str


def data_files(dataset: DatasetPlan, label: str) -> list[tuple[Path, str]]:
    """Files of a dataset and their addresses. Of a folder: all of known types; where some lie under a name that
    begins with `train`, only those, so that nothing is learned from a test split.
    """
    root = Path(dataset.path)
    if root.is_file():
        return [(root, dataset.uri)]
    if not root.is_dir():
        raise DataError(f"{label} {dataset.uri}: there is no file or folder {root}. Check the address")
    paths = sorted(
        path
        for path in root.rglob("*")
        if path.is_file()
        and path.suffix in SUFFIXES
        and path.name not in NOT_DATA
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    if not paths:
        found = sorted(path.name for path in root.iterdir())[:20]
        raise DataError(
            f"{label} {dataset.uri}: no data files in the folder; found {found}; expected *{', *'.join(SUFFIXES)}"
        )
    training = [p for p in paths if any(part.startswith("train") for part in p.relative_to(root).parts)]
    return [(path, f"{dataset.uri.rstrip('/')}/{path.relative_to(root).as_posix()}") for path in training or paths]


def read_file(path: Path, where: str, uri: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, columns) of each row of a file. The number is the line, from 1, in JSONL and CSV, else the row."""
    suffix = path.suffix if path.suffix in SUFFIXES else Path(urlsplit(uri).path).suffix
    try:
        match suffix:
            case ".jsonl" | ".ndjson":
                with path.open(encoding="utf-8-sig") as file:
                    for number, line in enumerate(file, 1):
                        if line.strip():
                            yield number, json_object(line, f"{where} row {number}")
            case ".json":
                content = json.loads(path.read_text(encoding="utf-8-sig"))
                if not isinstance(content, list):
                    raise DataError(
                        f"{where}: found {kind_of(content)}; expected a list of objects, or name the file .jsonl"
                    )
                for number, value in enumerate(content, 1):
                    if not isinstance(value, dict):
                        raise DataError(
                            f"{where} row {number}: found {kind_of(value)}; expected an object with columns"
                        )
                    yield number, value
            case ".csv":
                csv.field_size_limit(sys.maxsize)
                with path.open(encoding="utf-8-sig", newline="") as file:
                    reader = csv.DictReader(file)
                    for line in reader:
                        yield reader.line_num, {k: v for k, v in line.items() if k is not None and v is not None}
            case ".parquet":
                import pyarrow.parquet as parquet

                number = 0
                for batch in parquet.ParquetFile(path).iter_batches():
                    for value in batch.to_pylist():
                        number += 1
                        yield number, value
            case _:
                raise DataError(
                    f"{where}: unknown type of file {suffix or '(no suffix)'!r}; expected {', '.join(SUFFIXES)}"
                )
    except DataError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{where}: cannot be read as {suffix}: {error}") from error


def json_object(line: str, where: str) -> dict[str, Any]:
    """The JSON object in `line`."""
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: no valid JSON: {error}; expected one object on one line") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: found {kind_of(value)}; expected an object with columns")
    return value


def kind_of(value: object) -> str:
    """A word for the type of a JSON value."""
    words = {dict: "an object", list: "a list", str: "text", bool: "a boolean", int: "a number", float: "a number"}
    return words.get(type(value), "nothing" if value is None else type(value).__name__)


@dataclass(frozen=True)
class Reader:
    """Turns the rows of one dataset into Rows."""

    label: str
    dataset: DatasetPlan
    plain: bool
    """Whether plain text is preferred where a row could be either (pre-training)."""

    def row(self, where: str, found: dict[str, Any]) -> Row:
        """One Row from the columns of one row."""
        columns = self.dataset.columns
        for name in ("messages", "query", "response", "system", "text"):
            column = getattr(columns, name)
            if column is not None and column not in found:
                self.fail(where, f"no column {column!r}", found, f"it, as {self.label}.columns.{name} names it")
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
        if response is None or response == "input":
            self.fail(
                where,
                "no answer",
                found,
                f"a response in one of {list(RESPONSE)}; map it with {self.label}.columns.response",
            )
        asked = self.string(where, found, query, "question")
        if query == "instruction" and found.get("input"):
            asked += "\n" + self.string(where, found, "input", "input")
        turns = [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": self.string(where, found, response, "answer")},
        ]
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
                if any(not isinstance(part, dict) or part.get("type") != "text" for part in content):
                    self.fail(
                        where, f"{at} has parts that are not text", found, "text only: images are not learned yet"
                    )
                content = "".join(part["text"] for part in content)
            if content is None and more.get("tool_calls"):
                content = ""
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


def read_datasets(datasets: Sequence[DatasetPlan], plain: bool, seed: int) -> tuple[list[Row], list[SourceFile]]:
    """All rows of the plan's datasets, one dataset after the other, and the files that they came from."""
    rows: list[Row] = []
    sources: list[SourceFile] = []
    for index, dataset in enumerate(datasets):
        label = f"datasets[{index}]"
        reader = Reader(label, dataset, plain)
        own: list[Row] = []
        for path, uri in data_files(dataset, label):
            own += [reader.row(f"{label} {uri} row {n}", found) for n, found in read_file(path, f"{label} {uri}", uri)]
            with path.open("rb") as file:
                sources.append(SourceFile(uri, "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()))
        if not own:
            raise DataError(f"{label} {dataset.uri}: there are no rows. Give a dataset with at least one row")
        for name in unfilled(own):
            print(f"{label} {dataset.uri}: rows hold {{{{{name}}}}}; to fill it set {label}.variables.{name}")
        rows += draw(own, dataset.sample, f"{seed}:{index}")
    return rows, sources


def unfilled(rows: Sequence[Row]) -> list[str]:
    """Names that stand in double braces in the first rows after filling: likely forgotten variables."""
    texts = (str(m["content"]) for row in rows[:100] for m in (*row.messages, {"content": row.text}))
    return sorted({name for text in texts for name in re.findall(r"\{\{\s*([A-Z][A-Z0-9_]*)\s*\}\}", text)})
