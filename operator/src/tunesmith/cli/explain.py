"""`explain`: what a reason means, and what to do."""

from __future__ import annotations

import difflib
from typing import Annotated

import typer

from tunesmith.cli.session import Session, command, grid
from tunesmith.client import NotFound
from tunesmith.decide import reasons


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, rich_help_panel="Help")(explain)


def explain(
    session: Session,
    error: Annotated[str | None, typer.Argument(help="A reason (OutOfMemory), or the name of a resource.")] = None,
) -> None:
    """Say what a reason means and what to do; of a resource, what holds for it now. Without one: all of them."""
    if error is None:
        rows = [(one, reasons.meaning(one), reasons.todo(one)) for one in reasons.every()]
        table = [{"reason": one, "meaning": meaning, "todo": todo} for one, meaning, todo in rows]
        session.answer(table, lambda: grid(["REASON", "MEANING", "WHAT TO DO"], rows))
        return
    known = {one.lower(): one for one in reasons.every()}
    found, message = known.get(error.lower()), ""
    if found is None:
        found, message = _of_resource(session, error, list(known))
        if found not in reasons.every():
            session.answer({"reason": found, "message": message}, f"{found}: {message}")
            return
    data: dict[str, str | None] = {"reason": found, "meaning": reasons.meaning(found), "todo": reasons.todo(found)}
    data |= {"follows": reasons.follows(found)} if reasons.follows(found) else {}
    data |= {"message": message} if message else {}
    labels = {"meaning": "it means", "message": "here", "follows": "then", "todo": "to do"}
    lines = [(label, data[key]) for key, label in labels.items() if data.get(key)]
    session.answer(data, lambda: grid([found, ""], lines))


def _of_resource(session: Session, name: str, known: list[str]) -> tuple[str, str]:
    """Reason and message of a resource's condition."""
    close = difflib.get_close_matches(name.lower(), known, 1, 0.75)
    if close:
        proper = next(one for one in reasons.every() if one.lower() == close[0])
        raise NotFound(f"there is no reason {name}", f"did you mean {proper}?")
    try:
        resource = session.client.find(name)
    except NotFound as error:
        raise NotFound(f"{name} is no reason, and {error.message}", "`tunesmith explain` lists all reasons") from error
    return resource.reason, resource.message
