"""docs/cli.md, written from the commands themselves."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from typer import Context
from typer.main import get_command

from tunesmith.cli.app import app

COMMON = ("--namespace", "--context", "--kubeconfig", "--output")
HEAD = """<!-- Generated from operator/src/tunesmith/cli by `make generate`. Do not edit. -->
# The command line

`pip install 'tunesmith[cli]'` gives `tunesmith`, and the same as `kubectl tunesmith`. It works with your kubeconfig and
your own rights, and needs no server of its own. From Python: [python.md](python.md).

```sh
tunesmith init SFT -f job.yaml              # a starter file
tunesmith submit job.yaml --dry-run         # the plan, the memory, the pods
tunesmith submit job.yaml --wait            # bars until it is done
tunesmith plot my-job                       # its loss
tunesmith deploy chat --model hf://Qwen/Qwen2.5-0.5B-Instruct --adapter mine=my-job --wait
tunesmith chat chat -m mine
```

`tunesmith --install-completion` sets up completion for bash, zsh, fish or PowerShell.

## Everywhere
"""
CODES = """
A mistake is one message on stderr, and an exit code:

| code | what |
|---|---|
"""


def page() -> str:
    """The page."""
    group: Any = get_command(app)
    context = Context(group, info_name="tunesmith")
    commands = {name: group.get_command(context, name) for name in group.list_commands(context)}
    some = next(iter(commands.values()))
    parts = [HEAD, _table(some, context, lambda names: names & set(COMMON)), CODES + "\n".join(_codes()) + "\n"]
    for name, command in commands.items():
        parts.append(f"## tunesmith {name}\n\n{inspect.cleandoc(command.help)}\n")
        parts.append(f"```\n{_usage(name, command, context)}\n```\n")
        parts.append(_table(command, context, lambda names: not names & {*COMMON, "--help"}))
    return "\n".join(part for part in parts if part).replace("\n\n\n", "\n\n")


def _usage(name: str, command: Any, context: Context) -> str:
    pieces = " ".join(piece for piece in command.collect_usage_pieces(context) if piece != "[OPTIONS]")
    return f"tunesmith {name} [OPTIONS] {pieces}".rstrip()


def _table(command: Any, context: Context, wanted: Any) -> str:
    rows = []
    for parameter in command.get_params(context):
        if not wanted(set(parameter.opts)):
            continue
        record = parameter.get_help_record(context)
        if record is None:
            continue
        name, text = record
        rows.append(f"| `{_cell(name)}` | {_cell(text)} |")
    return "\n".join(["| | |", "|---|---|", *rows, ""]) if rows else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _codes() -> Iterator[str]:
    from tunesmith.client import errors

    seen = {1: "Any other error.", 130: "Ctrl-C."}
    for one in vars(errors).values():
        if inspect.isclass(one) and issubclass(one, errors.TunesmithError) and one.exit_code != 1:
            seen.setdefault(one.exit_code, (one.__doc__ or "").split("\n")[0])
    return (f"| {code} | {text} |" for code, text in sorted(seen.items()))
