"""`chat` and `endpoint`: the models of a ModelDeployment."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from tunesmith.cli.session import Session, command
from tunesmith.client import ModelDeployment

Deployment = Annotated[str, typer.Argument(help="Name of the ModelDeployment.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for function in (chat, endpoint):
        command(app, rich_help_panel="Ask")(function)


def chat(
    session: Session,
    deployment: Deployment,
    question: Annotated[str | None, typer.Argument(help="One question; without it, a conversation.")] = None,
    model: Annotated[str | None, typer.Option("-m", "--model", help="An adapter; default: the model itself.")] = None,
    system: Annotated[str | None, typer.Option(help="The system's message.")] = None,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0: always the likeliest word.")] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 512,
) -> None:
    """Talk with a model, through the API server and with your own rights. Answers stream."""
    live = session.client.get(ModelDeployment, deployment)
    said: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    options: dict[str, Any] = {"model": model, "temperature": temperature, "max_tokens": max_tokens}

    def ask(text: str) -> str:
        said.append({"role": "user", "content": text})
        answer = ""
        for piece in session.client.chat(deployment, said, **options):
            answer += piece
            if session.output.value == "table":
                print(piece, end="", flush=True)
        said.append({"role": "assistant", "content": answer})
        return answer

    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read().strip()
    if question is not None:
        answer = ask(question)
        data = {"model": model or live.spec.model_name, "question": question, "answer": answer}
        session.answer(data, "")
        return
    names = [live.spec.model_name, *(adapter.name for adapter in live.spec.adapters)]
    session.say(f"{deployment} serves {', '.join(names)}. An empty line ends the conversation.")
    while text := _line():
        ask(text)
        print()


def _line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def endpoint(session: Session, deployment: Deployment) -> None:
    """Keep the OpenAI API of a deployment open on this machine, for any client, until Ctrl-C."""
    session.client.get(ModelDeployment, deployment)
    with session.client.endpoint(deployment) as url:
        session.answer({"url": url}, url)
        sys.stdout.flush()
        while True:
            time.sleep(3600)
