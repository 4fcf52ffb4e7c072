"""`suspend`, `resume`, `retry` and `delete`."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith.cli import show
from tunesmith.cli.session import Session, command
from tunesmith.cli.watch import follow
from tunesmith.client import Invalid, ModelDeployment
from tunesmith.client.resources import AnyJob, AnyResource

Names = Annotated[list[str], typer.Argument(help="Names, or kind/name.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for function in (suspend, resume, retry, delete):
        command(app, rich_help_panel="Change")(function)


def _jobs(session: Session, names: list[str]) -> list[AnyJob]:
    found = [session.client.find(name) for name in names]
    jobs = [one for one in found if not isinstance(one, ModelDeployment)]
    for one in found:
        if one not in jobs:
            raise Invalid(f"{one.kind} {one.name} is no job", "scale it: kubectl scale mdep/NAME --replicas=0")
    return jobs


def _done(session: Session, found: list[AnyResource], what: str) -> None:
    session.answer(
        [{"kind": one.kind, "name": one.name, "done": what} for one in found],
        lambda: "\n".join(f"{one.kind} {one.name} {what}" for one in found),
    )


def suspend(session: Session, names: Names) -> None:
    """Have jobs write a checkpoint, and free what they hold."""
    jobs = _jobs(session, names)
    for job in jobs:
        if job.over:
            raise Invalid(f"{job.kind} {job.name} is over: {job.reason}", "there is nothing to suspend")
        session.client.suspend(job)
    _done(session, [*jobs], "is asked to suspend")


def resume(session: Session, names: Names) -> None:
    """Have suspended jobs go on from their checkpoints."""
    jobs = _jobs(session, names)
    for job in jobs:
        if job.over:
            raise Invalid(f"{job.kind} {job.name} is over: {job.reason}", "`tunesmith retry` runs it again")
        session.client.resume(job)
    _done(session, [*jobs], "goes on")


def retry(
    session: Session,
    name: Annotated[str, typer.Argument(help="Name, or kind/name.")],
    to: Annotated[
        str | None, typer.Option("--as", help="Under another name, which keeps the record of the run before.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Watch until it is done.")] = False,
) -> None:
    """Run a job that is over once more, from its beginning."""
    [job] = _jobs(session, [name])
    again = session.client.retry(job, to)
    session.answer(show.body(again), lambda: f"{again.kind} {again.name} submitted")
    if wait:
        follow(session, [again])


def delete(
    session: Session,
    names: Names,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until its pods are gone.")] = True,
) -> None:
    """Delete resources and their pods. What they made stays in the store."""
    found = [session.client.find(name) for name in names]
    for one in found:
        session.client.delete(one, wait=wait)
    _done(session, found, "deleted" if wait else "is being deleted")
