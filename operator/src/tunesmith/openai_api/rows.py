"""The rows of an uploaded file: which form they have, what is wrong with them, and how the trainer wants them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from tunesmith.openai_api.errors import ApiRefusal

Form = Literal["chat", "preference", "prompts"]
Row = dict[str, Any]
ROLES = ("system", "user", "assistant", "tool")
METHODS: dict[str, Form] = {"supervised": "chat", "dpo": "preference", "reinforcement": "prompts"}
"""The form of rows that each of OpenAI's methods learns from."""
WANTED: dict[Form, str] = {
    "chat": '"messages" that end with the assistant\'s answer',
    "preference": '"input", "preferred_output" and "non_preferred_output"',
    "prompts": '"messages" that end with the user\'s turn',
}


def read(lines: Iterable[bytes]) -> Iterator[tuple[int, Row]]:
    """(number, row) of every line that is not empty. Raises ApiRefusal."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            begin = line[:40].decode(errors="replace").rstrip()
            raise _bad(
                "Expected file to have JSONL format, where every line is a JSON dictionary. "
                f"Line {number} is not a dictionary (HINT: line starts with: {begin!r})."
            )
        if b"\\ud" in line.lower() and not _encodable(row):
            raise _bad(f"Line {number} has half a character: a surrogate (\\ud800 to \\udfff) without the other one.")
        yield number, row


def _encodable(row: Row) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def form_of(row: Row) -> Form | None:
    """The form that a row looks like; None: none of them."""
    if "preferred_output" in row or "non_preferred_output" in row:
        return "preference"
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages or not isinstance(messages[-1], dict):
        return None
    return "chat" if messages[-1].get("role") == "assistant" else "prompts"


def check(lines: Iterable[bytes]) -> tuple[Form, int]:
    """The form of a file and the number of its rows, all of which are looked at. Raises ApiRefusal."""
    form: Form | None = None
    count = 0
    for count, (number, row) in enumerate(read(lines), 1):  # noqa: B007
        found = form_of(row)
        if found is None:
            known = "; ".join(WANTED.values())
            raise _bad(
                f"Line {number} is no training example: it has the keys {sorted(row)}. Expected one of: {known}."
            )
        if form and found != form:
            raise _bad(f"Line {number} has another format than the lines before. Expected {WANTED[form]}.")
        form = found
        _examine(number, row, form)
    if form is None:
        raise _bad("The file is empty: it has no training examples.")
    return form, count


def converted(row: Row) -> Row:
    """A preference as the trainer reads it; any other row as it is."""
    if "preferred_output" not in row:
        return row
    asked = row["input"]
    sides = {"chosen": row["preferred_output"], "rejected": row["non_preferred_output"]}
    result: Row = {name: [*asked["messages"], *answer] for name, answer in sides.items()}
    return {**result, **({"tools": asked["tools"]} if asked.get("tools") else {})}


def _examine(number: int, row: Row, form: Form) -> None:
    if form != "preference":
        _messages(number, row["messages"], "messages")
        return
    asked = row.get("input")
    if not isinstance(asked, dict):
        raise _bad(f"Line {number}: 'input' must be a dictionary with 'messages'.")
    _messages(number, asked.get("messages"), "input.messages")
    for name in ("preferred_output", "non_preferred_output"):
        _messages(number, row.get(name), name)
        if any(message["role"] != "assistant" for message in row[name]):
            raise _bad(f"Line {number}: '{name}' must hold messages of the assistant only.")


def _messages(number: int, messages: Any, name: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise _bad(f"Line {number}: '{name}' must be a list of messages that is not empty.")
    for place, message in enumerate(messages):
        at = f"Line {number}: '{name}[{place}]"
        if not isinstance(message, dict):
            raise _bad(f"{at}' must be a dictionary with 'role' and 'content'.")
        if message.get("role") not in ROLES:
            raise _bad(f"{at}.role' must be one of {', '.join(ROLES)}, found {message.get('role')!r}.")
        calls = message["role"] == "assistant" and message.get("tool_calls")
        if not isinstance(message.get("content"), str | list) and not calls:
            raise _bad(f"{at}.content' must be text or a list of parts.")
        if message.get("weight", 1) != 1:
            raise _bad(f"{at}.weight': messages cannot be weighed here; leave it out, or leave the message out.")


def _bad(message: str) -> ApiRefusal:
    return ApiRefusal(message, param="file", code="invalid_file")
