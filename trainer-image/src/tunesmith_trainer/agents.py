"""Conversations with tools, in the forms of several makers -> OpenAI's: an assistant's turn with `tool_calls`, and
turns of the role `tool` with their results.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

Message = dict[str, Any]
CALL = {"tool_call", "function_call"}
"""Roles of a turn that is a call, as JSON: `{"name": …, "arguments": {…}}`."""


def normal(messages: Iterable[Message]) -> list[Message]:
    """Messages whose calls are in the assistant's `tool_calls`, with arguments as objects."""
    turns: list[Message] = []
    for message in messages:
        if message["role"] in CALL and isinstance(message["content"], str):
            calls = [call(one) for one in listed(parsed(message["content"]))]
            rest = {key: value for key, value in message.items() if key not in ("role", "content")}
            if turns and turns[-1]["role"] == "assistant":  # what was thought before the call, or another call
                turns[-1] = turns[-1] | rest | {"tool_calls": [*turns[-1].get("tool_calls", []), *calls]}
            else:
                turns.append({"role": "assistant", "content": "", "tool_calls": calls, **rest})
            continue
        turns += blocks({**message})
    return turns


def blocks(message: Message) -> Iterator[Message]:
    """One message, whose `tool_use` and `tool_result` blocks (Anthropic's) become calls and turns of their own."""
    parts = message.get("content")
    parts = parts if isinstance(parts, list) else []
    results = [part for part in parts if isinstance(part, dict) and part.get("type") == "tool_result"]
    uses = [part for part in parts if isinstance(part, dict) and part.get("type") == "tool_use"]
    for part in results:
        yield {"role": "tool", "content": plain(part.get("content")), "tool_call_id": part.get("tool_use_id")}
    if uses or results:
        rest = [part for part in parts if part not in uses and part not in results]
        if results and not rest:
            return
        message["content"] = rest or ""
    calls = [call(one) for one in message.get("tool_calls") or []]
    calls += [call({"id": part.get("id"), "name": part.get("name"), "arguments": part.get("input")}) for part in uses]
    if calls:
        message["tool_calls"] = calls
    yield message


def call(value: Any) -> Any:
    """A call in OpenAI's form; templates want the arguments as an object. What is no call is left as it is."""
    if not isinstance(value, dict):
        return value
    function = value.get("function") if isinstance(value.get("function"), dict) else value
    if not isinstance(function, dict) or "name" not in function:
        return value
    arguments = parsed(function.get("arguments", function.get("parameters", {})))
    made: Message = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {"id": value["id"], **made} if value.get("id") else made


def parsed(value: Any) -> Any:
    """JSON in a text, or the value itself."""
    if isinstance(value, str):
        with suppress(ValueError):
            return json.loads(value)
    return value


def listed(value: Any) -> list[Any]:
    """One or several, as a list."""
    return value if isinstance(value, list) else [value]


def plain(value: Any) -> str:
    """The text of a tool's result."""
    if isinstance(value, list):
        return "".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
