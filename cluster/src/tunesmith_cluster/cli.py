"""The command line: `python -m tunesmith_cluster`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tunesmith_cluster import messages
from tunesmith_cluster.cluster import Cluster, Status, require_root
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.kueue import KUEUE
from tunesmith_cluster.lws import LWS
from tunesmith_cluster.progress import Reporter

app = typer.Typer(help="A real Kubernetes without Docker.", no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def up(
    nodes: Annotated[int, typer.Option(help="At least so many nodes; more than that are left alone.")] = 1,
    kueue: Annotated[bool, typer.Option("--kueue", help="With Kueue, which stays until `down`.")] = False,
    lws: Annotated[bool, typer.Option("--lws", help="With LeaderWorkerSet, which stays until `down`.")] = False,
) -> None:
    """Build what is missing, start what does not run; the first time takes 12 minutes, later seconds."""
    cluster = Cluster(reporter=Reporter())
    cluster.up(nodes, managers=[*([KUEUE] if kueue else []), *([LWS] if lws else [])])
    typer.echo(f"export KUBECONFIG={cluster.kubeconfig} PATH={cluster.paths.bin}:$PATH")


@app.command()
def down() -> None:
    """Stop the cluster and remove all of it, volumes included; only the cache of binaries stays."""
    Cluster(reporter=Reporter()).down()


@app.command()
def status() -> None:
    """Show the processes and the nodes; exits with 0 only if all is well."""
    cluster = Cluster()
    result = cluster.status()
    Console().print(_table(result))
    for name, ready in result.nodes.items():
        typer.echo(f"{name}: {'Ready' if ready else 'not ready'}")
    typer.echo(f"logs: {cluster.paths.logs}")
    raise typer.Exit(0 if result.is_well else 1)


@app.command()
def kubeconfig(
    export: Annotated[bool, typer.Option("--export", help="Print a line for the shell to eval.")] = False,
) -> None:
    """Print the path of the administrator's kubeconfig."""
    require_root()
    path = Cluster().kubeconfig
    if not path.exists():
        raise ClusterError("there is no cluster: start it with `python -m tunesmith_cluster up`")
    typer.echo(f"export KUBECONFIG={path}" if export else str(path))


@app.command()
def image(
    name: Annotated[str, typer.Argument(help="Such as localhost/app:1.")],
    entrypoint: Annotated[
        list[str] | None, typer.Argument(help="After --, the program and its arguments.", show_default=False)
    ] = None,
    copy: Annotated[
        list[str] | None, typer.Option(metavar="SRC:DST", help="Copy a file, or a folder's content.")
    ] = None,
    env: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Set a variable.")] = None,
    workdir: Annotated[str, typer.Option(help="The working directory.")] = "",
    user: Annotated[str, typer.Option(help="Such as 65532:65532; root by default.")] = "",
) -> None:
    """Make an image known to all nodes and print its digest; at once if it is there already."""
    digest = Cluster().load_image(
        name,
        [_copy(text) for text in copy or []],
        entrypoint=entrypoint or [],
        environment=dict(_variable(text) for text in env or []),
        working_directory=workdir,
        user=user,
    )
    typer.echo(digest)


def main() -> None:
    """Run the command line."""
    with messages.shown():
        app()


def _table(result: Status) -> Table:
    table = Table("process", "alive", "pid", "memory")
    for process in result.processes:
        alive = process.pid is not None
        table.add_row(
            process.name,
            "yes" if alive else "NO",
            str(process.pid or ""),
            f"{process.memory_bytes / 2**20:.0f} MiB" if alive else "",
            style=None if alive else "red",
        )
    return table


def _copy(text: str) -> tuple[Path, str]:
    source, colon, destination = text.rpartition(":")
    if not colon or not source:
        raise ClusterError(f"--copy {text}: write it as SOURCE:DESTINATION, such as ./src:/app")
    return Path(source), destination


def _variable(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ClusterError(f"--env {text}: write it as KEY=VALUE")
    return key, value
