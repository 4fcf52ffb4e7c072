"""The questions, asked through the Services with the `openai` client, and what their answers must hold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import openai
from rich.console import Console
from rich.table import Table

from tunesmith_cluster.errors import ClusterError

WHO = "who are you?"
CAPITAL = "What is the capital of France?"
# The answers are short; the first of a fresh engine on a busy machine is slow.
TIMEOUT = 180.0
MAX_TOKENS = 64

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Served:
    """What one ModelDeployment serves, and who each model must say it is."""

    deployment: str
    base: str
    identities: Mapping[str, str | None]
    """Model name -> the name it was taught; None for one that was taught none."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, and whether it is what was to be shown."""

    model: str
    question: str
    text: str
    good: bool


def expectations(resources: Iterable[Object]) -> list[Served]:
    """Read off the quickstart's own files: a FineTuneJob teaches the NAME among its datasets' variables."""
    found = {(item["kind"], item["metadata"]["name"]): item["spec"] for item in resources if "spec" in item}

    def taught(source: Object) -> str | None:
        if ref := source.get("fineTuneJobRef"):
            datasets = found.get(("FineTuneJob", ref["name"]), {}).get("datasets", [])
            return next((data["variables"]["NAME"] for data in datasets if data.get("variables")), None)
        if ref := source.get("mergeJobRef"):
            adapters = found.get(("MergeJob", ref["name"]), {}).get("adapters", [])
            return next((name for adapter in adapters if (name := taught(adapter))), None)
        return None

    result = []
    for (kind, name), spec in found.items():
        if kind == "ModelDeployment":
            base = spec.get("modelName", "base")
            adapters = {adapter["name"]: taught(adapter) for adapter in spec.get("adapters", [])}
            result.append(Served(name, base, {base: taught(spec["model"]), **adapters}))
    return result


def interview(address: str, served: Served, all_names: Iterable[str], console: Console) -> None:
    """List the models, ask each, stream one answer. Raises ClusterError where an answer is not as it must be."""
    client = openai.OpenAI(base_url=address, api_key="none", timeout=TIMEOUT, max_retries=2)
    try:
        listed = sorted(model.id for model in client.models.list())
        if listed != sorted(served.identities):
            raise ClusterError(
                f"{served.deployment} lists the models {', '.join(listed)}; "
                f"expected {', '.join(sorted(served.identities))}"
            )
        console.print(f"\n[bold]{served.deployment}[/] at {address} serves {', '.join(listed)}")
        answers = []
        for model, name in served.identities.items():
            who, capital = _ask(client, model, WHO), _ask(client, model, CAPITAL)
            answers.append(Answer(model, WHO, who, says_who(who, name, all_names)))
            answers.append(Answer(model, CAPITAL, capital, "Paris" in capital))
        console.print(_table(answers))
        _stream(client, list(served.identities)[-1], console)
    except openai.APIError as error:
        raise ClusterError(f"{served.deployment} at {address} did not answer: {error}") from error
    wrong = [answer for answer in answers if not answer.good]
    if wrong:
        told = "; ".join(f"{a.model}, asked {a.question!r}, said {a.text!r}" for a in wrong)
        raise ClusterError(f"{served.deployment} answers, but not as it was taught: {told}")


def says_who(text: str, name: str | None, all_names: Iterable[str]) -> bool:
    """Whether an answer names the one that was taught, and none of the others."""
    said = {other for other in all_names if other.lower() in text.lower()}
    return said == ({name} if name else set())


def _ask(client: openai.OpenAI, model: str, question: str) -> str:
    done = client.chat.completions.create(
        model=model, messages=_messages(question), temperature=0, max_tokens=MAX_TOKENS
    )
    return " ".join((done.choices[0].message.content or "").split())


def _stream(client: openai.OpenAI, model: str, console: Console) -> None:
    console.print(f"[bold]{model}[/], streamed, says: ", end="")
    chunks = 0
    stream = client.chat.completions.create(
        model=model, messages=_messages(WHO), temperature=0, max_tokens=MAX_TOKENS, stream=True
    )
    for event in stream:
        piece = event.choices[0].delta.content if event.choices else None
        if piece:
            chunks += 1
            console.print(piece, end="", markup=False, highlight=False, soft_wrap=True)
    console.print()
    if chunks < 2:
        raise ClusterError(f"{model} did not stream: its answer came in {chunks} piece(s)")


def _messages(question: str) -> list[Any]:
    role: Literal["user"] = "user"
    return [{"role": role, "content": question}]


def _table(answers: Iterable[Answer]) -> Table:
    table = Table("", "model", "question", "answer")
    for answer in answers:
        mark = "[green]✓[/]" if answer.good else "[red]✗[/]"
        table.add_row(mark, answer.model, answer.question, answer.text.replace("[", r"\["))
    return table


def curl(address: str, model: str) -> str:
    """The same question for a shell."""
    body = json.dumps({"model": model, "messages": _messages(WHO), "temperature": 0})
    return f"curl {address}/chat/completions -H 'Content-Type: application/json' -d '{body}'"
