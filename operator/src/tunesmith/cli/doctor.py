"""`doctor`: what is wrong with this cluster."""

from __future__ import annotations

from dataclasses import asdict

import typer
from rich.text import Text

from tunesmith.cli.session import Session, command, grid

MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "red"), "unknown": ("?", "dim")}


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, rich_help_panel="Help")(doctor)


def doctor(session: Session) -> None:
    """Look at the cluster: versions, CRDs, your rights, the operator, GPUs, storage, Kueue.

    Exit code 1 where it found an error.
    """
    from tunesmith.client.answers import understood
    from tunesmith.client.diagnosis import diagnose

    with understood():
        found = session.client.run(diagnose(session.client.aio))
    rows = [(Text(*MARKS[one.verdict]), one.check, one.found, one.todo) for one in found]
    session.answer([asdict(one) for one in found], lambda: grid(["", "CHECK", "FOUND", "WHAT TO DO"], rows))
    if any(one.verdict == "error" for one in found):
        raise typer.Exit(1)
