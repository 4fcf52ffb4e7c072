"""What every command has: where the cluster is, how to answer, and what becomes of errors."""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from tunesmith.client import Client

INTERRUPTED = 130


class Format(Enum):
    """How a command answers."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


Namespace = Annotated[str | None, typer.Option("-n", "--namespace", help="Namespace; default: the context's.")]
Context = Annotated[str | None, typer.Option("--context", help="Context of the kubeconfig.")]
Kubeconfig = Annotated[str | None, typer.Option("--kubeconfig", help="Default: $KUBECONFIG, else ~/.kube/config.")]
Output = Annotated[Format, typer.Option("-o", "--output", help="How to answer.")]


@dataclass
class Session:
    """One run of a command. The cluster is looked for when it is needed."""

    namespace: str | None
    context: str | None
    kubeconfig: str | None
    output: Format

    @cached_property
    def out(self) -> Console:
        """For answers."""
        return Console(highlight=False)

    @cached_property
    def err(self) -> Console:
        """For everything else."""
        return Console(stderr=True, highlight=False)

    @cached_property
    def client(self) -> Client:
        """The client."""
        from tunesmith.client import Client

        return Client(self.namespace, context=self.context, kubeconfig=self.kubeconfig)

    def close(self) -> None:
        """Close what was opened."""
        if "client" in self.__dict__:
            self.client.close()

    def say(self, text: str) -> None:
        """A line for people, beside the answer."""
        self.err.print(escape(text), soft_wrap=True)

    def answer(self, data: Any, table: Table | str | Callable[[], Table | str]) -> None:
        """The answer: data, or as a table."""
        match self.output:
            case Format.JSON:
                print(json.dumps(data, indent=2, ensure_ascii=False))
            case Format.YAML:
                documents = data if isinstance(data, list) else [data]
                print(yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True), end="")
            case Format.TABLE:
                shown = table() if callable(table) else table
                self.out.print(escape(shown) if isinstance(shown, str) else shown, soft_wrap=isinstance(shown, str))


def grid(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A plain table, as kubectl's."""

    def plain(cell: object) -> Text | str:
        return cell if isinstance(cell, Text) else escape("" if cell is None else str(cell))

    table = Table(*columns, box=None, pad_edge=False, header_style="bold", show_edge=False)
    for row in rows:
        table.add_row(*map(plain, row))
    return table


def command(app: typer.Typer, **options: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function a command. Its parameter `session` becomes the options that all commands have."""

    def wrap(function: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(function, include_extras=True)
        own = [
            parameter.replace(annotation=hints[name])
            for name, parameter in inspect.signature(function).parameters.items()
            if name != "session"
        ]
        common: dict[str, tuple[Any, Any]] = {
            "namespace": (Namespace, None),
            "context": (Context, None),
            "kubeconfig": (Kubeconfig, None),
            "output": (Output, Format.TABLE),
        }
        shared = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for name, (kind, default) in common.items()
        ]

        @functools.wraps(function)
        def run(**arguments: Any) -> None:
            session = Session(*(arguments.pop(name) for name in common))
            guarded(session, lambda: function(session, **arguments))

        keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        run.__signature__ = inspect.Signature([*keyword, *shared])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *shared]}
        del run.__wrapped__  # typer would look at its signature
        return app.command(**options)(run)

    return wrap


def guarded(session: Session, work: Callable[[], None]) -> None:
    """Run a command: errors become one message on stderr, and an exit code."""
    from tunesmith.client.errors import TunesmithError

    try:
        work()
        sys.stdout.flush()
    except TunesmithError as error:
        failed(session, error.message, error.hint, error.exit_code)
    except BrokenPipeError:  # `tunesmith get | head`
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    finally:
        session.close()


def failed(session: Session, message: str, hint: str, code: int) -> None:
    """Say what went wrong, and end."""
    session.err.print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True)
    if hint:
        session.err.print(f"  {escape(hint)}", soft_wrap=True)
    raise typer.Exit(code) from None


def short(value: float | None) -> str:
    """A number for people."""
    return "" if value is None else f"{value:.4g}"


def pick(data: Mapping[str, Any], *path: str) -> Any:
    """The value under a path of keys, or None."""
    found: Any = data
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found
