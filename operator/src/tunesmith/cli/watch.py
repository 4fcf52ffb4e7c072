"""`watch`: several resources at once, until all are over."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.live import Live

from tunesmith.cli import show
from tunesmith.cli.session import Session, command
from tunesmith.client import JobFailed, ModelDeployment, WaitTimeout
from tunesmith.client.resources import RESOURCES, AnyResource

POLL_SECONDS = 1.0
Names = Annotated[list[str] | None, typer.Argument(help="Names, or kind/name; default: all that are not over.")]


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, rich_help_panel="Look")(watch)


def watch(
    session: Session,
    names: Names = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait at most.")] = None,
) -> None:
    """Follow resources live until all are over: bars on a terminal, lines elsewhere.

    Ends with an error as soon as one has failed.
    """
    if names:
        found: list[AnyResource] = [session.client.find(name) for name in names]
    else:
        found = [one for one in everything(session) if not one.over]
    if not found:
        session.say("nothing is under way")
        return
    follow(session, found, timeout)


def everything(session: Session, everywhere: bool = False) -> list[AnyResource]:
    """All resources of the namespace."""
    lists = [session.client.list(kind, everywhere=everywhere) for kind in RESOURCES.values()]  # type: ignore[type-var]
    return [one for kind in lists for one in kind]


def follow(session: Session, found: list[AnyResource], timeout: float | None = None) -> None:
    """Show them until all are over. Raises JobFailed and WaitTimeout."""
    end = None if timeout is None else time.monotonic() + timeout
    console, told = session.out if session.output.value == "table" else session.err, dict[str, str]()
    with Live(console=console, auto_refresh=False, transient=False) as live:
        if not console.is_terminal:
            live.stop()
        while True:
            found = [session.client.refresh(one) for one in found]
            if console.is_terminal:
                live.update(show.bars(found), refresh=True)
            else:
                for one in found:
                    text = show.line(one)
                    if told.get(f"{one.kind}/{one.name}") != text:
                        told[f"{one.kind}/{one.name}"] = text
                        console.print(text, markup=False, soft_wrap=True)
            bad = next((one for one in found if one.failed), None)
            if bad or all(one.done for one in found):
                break
            if end is not None and time.monotonic() > end:
                late = "; ".join(show.line(one) for one in found if not one.done)
                raise WaitTimeout(f"not done after {timeout:g} s: {late}")
            time.sleep(POLL_SECONDS)
    if session.output.value != "table":
        session.answer([show.body(one) for one in found], "")
    if bad:
        failure = None if isinstance(bad, ModelDeployment) else bad.status.failure
        raise JobFailed(bad.kind, bad.name, bad.reason, bad.message, failure)
