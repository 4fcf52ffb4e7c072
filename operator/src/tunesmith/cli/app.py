"""The commands, put together."""

from __future__ import annotations

from typing import Annotated

import typer

from tunesmith import __version__
from tunesmith.cli import change, chat, console, doctor, explain, look, submit, watch

app = typer.Typer(
    name="tunesmith",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Fine-tune, merge and serve language models on Kubernetes.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Fine-tune, merge and serve language models on Kubernetes."""


for part in (submit, look, watch, change, chat, console, explain, doctor):
    part.register(app)
