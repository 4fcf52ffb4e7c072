"""`get`, `logs`, `plot` and `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tunesmith.cli import show
from tunesmith.cli.session import Session, command, grid, pick, short
from tunesmith.cli.watch import everything
from tunesmith.client import Curve, FineTuneJob, Invalid, ModelDeployment, NotFound
from tunesmith.client.answers import kind_of
from tunesmith.client.resources import AnyResource

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")
Job = Annotated[str, typer.Argument(help="Name, or kind/name.")]
Jobs = Annotated[list[str], typer.Argument(help="Names of FineTuneJobs.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for function in (get, logs, plot, compare):
        command(app, rich_help_panel="Look")(function)


def get(
    session: Session,
    names: Annotated[list[str] | None, typer.Argument(help="A kind (ftj, mj, ij, mdep), names, or kind/name.")] = None,
    everywhere: Annotated[bool, typer.Option("-A", "--all-namespaces", help="Of all namespaces.")] = False,
) -> None:
    """Show resources: all, those of a kind, or one with its attempts and what it waits for."""
    kinds = _kinds(names or [])
    if not names or kinds:
        found = [one for one in everything(session, everywhere) if not kinds or one.kind in kinds]
        if not found and session.output.value == "table":
            session.say(f"nothing in namespace {session.client.namespace}; -n chooses another, -A shows all")
        session.answer([show.body(one) for one in found], lambda: show.table(found, everywhere) if found else "")
        return
    one_each = [session.client.find(name) for name in names]
    data = [show.body(one) for one in one_each]
    if session.output.value != "table":
        session.answer(data[0] if len(data) == 1 else data, "")
        return
    for number, one in enumerate(one_each):
        session.out.print(*([""] if number else []), show.details(one), sep="\n")


def _kinds(names: list[str]) -> set[str]:
    """The kinds that are meant where the names are kinds."""
    try:
        return {kind_of(name) for name in names}
    except Invalid:
        return set()


def logs(
    session: Session,
    name: Job,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="As they come, until the job is over.")] = False,
    attempt: Annotated[int | None, typer.Option(min=1, help="Default: the newest.")] = None,
    rank: Annotated[int | None, typer.Option(min=0, help="Pod of this index only; default: all.")] = None,
    tail: Annotated[int | None, typer.Option(min=1, help="Last lines of each container.")] = None,
) -> None:
    """Show the logs of all ranks of an attempt, by time."""
    resource = session.client.find(name)
    several, count = None, 0
    for entry in session.client.logs(resource, attempt=attempt, rank=rank, follow=follow, tail=tail):
        count += 1
        if session.output.value == "json":
            session.out.print_json(data=vars(entry), indent=None)
            continue
        if several is None:
            several = not isinstance(resource, FineTuneJob) or resource.spec.nodes > 1
        mark = f"[{COLOURS[entry.rank % len(COLOURS)]}]{_who(resource, entry)}[/] " if several else ""
        session.out.print(mark, end="")
        session.out.print(entry.text, markup=False, soft_wrap=True)
    if not count:
        numbers = [] if isinstance(resource, ModelDeployment) else [one.number for one in resource.status.attempts]
        had = f"its attempts: {', '.join(map(str, numbers))}" if numbers else f"it is {resource.reason}"
        raise NotFound(f"{resource.kind} {resource.name} has no pod with a log there", f"{had}: {resource.message}")


def _who(resource: AnyResource, entry: Any) -> str:
    return f"{entry.container}" if isinstance(resource, ModelDeployment) else f"rank {entry.rank}"


def _curves(session: Session, names: list[str]) -> list[tuple[FineTuneJob, Curve]]:
    jobs = [session.client.get(FineTuneJob, name.rpartition("/")[2]) for name in names]
    return [(job, session.client.curve(job)) for job in jobs]


def plot(
    session: Session,
    names: Jobs,
    metric: Annotated[str, typer.Option(help="loss, learning_rate, tokens_per_second, or the method's.")] = "loss",
    png: Annotated[Path | None, typer.Option(help="Write a picture instead.")] = None,
) -> None:
    """Draw curves: in the terminal, or as a PNG. Numbers come from the logs of rank 0."""
    curves = [curve for _, curve in _curves(session, names)]
    data = [{"name": one.name, "steps": one.series(metric)[0], metric: one.series(metric)[1]} for one in curves]
    if not any(one["steps"] for one in data):
        known = sorted({name for one in curves for name in one.metrics()}) if any(one.points for one in curves) else []
        hint = f"there are {', '.join(known)}" if known else "it has logged nothing yet, or its pods are gone"
        raise NotFound(f"no {metric} of {', '.join(names)}", hint)
    if png:
        write_png(curves, metric, png)
        session.say(f"wrote {png}")
        return
    if session.output.value == "table":
        print(terminal(curves, metric, session.out.width, session.out.is_terminal))
        return
    session.answer(data, "")


def terminal(curves: list[Curve], metric: str, width: int, colours: bool) -> str:
    """The curves in characters."""
    import plotext  # type: ignore[import-untyped]

    figure = plotext.figure
    figure.clear()
    figure.plot_size(min(width, 100), 20)
    for curve in curves:
        steps, values = curve.series(metric)
        if steps:
            signal = figure.signal(steps, values)
            signal.lines()
            signal.label(curve.name)
            figure.draw(signal)
    figure.label("step", "x")
    figure.title(metric)
    return str(figure.build().string(colorless=not colours))


def write_png(curves: list[Curve], metric: str, path: Path) -> None:
    """The curves as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for curve in curves:
        axes.plot(*curve.series(metric), label=curve.name)
    axes.set_xlabel("step")
    axes.set_ylabel(metric)
    axes.grid(alpha=0.3)
    axes.legend()
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise Invalid(f"--png {path}: {error}") from error


ROWS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("model", ("spec", "model", "uri")),
    ("method", ("spec", "method", "type")),
    ("tuner", ("spec", "tuner", "type")),
    ("rank", ("spec", "tuner", "rank")),
    ("learning rate", ("spec", "training", "learningRate")),
    ("global batch", ("spec", "training", "globalBatchSize")),
    ("max length", ("spec", "training", "maxLength")),
    ("nodes", ("spec", "nodes")),
    ("strategy", ("status", "memory", "strategy")),
    ("restarts", ("status", "restarts")),
    ("device-hours", ("status", "accounting", "askedHours")),
    ("cost", ("status", "accounting", "cost")),
    ("tokens/s", ("status", "progress", "tokensPerSecond")),
    ("artifact", ("status", "artifact", "digest")),
)


def compare(session: Session, names: Jobs) -> None:
    """Show jobs side by side: what is different in their specs, and what came of them."""
    found = _curves(session, names)
    bodies = [show.body(job) for job, _ in found]
    rows: dict[str, list[Any]] = {"status": [job.reason for job, _ in found]}
    rows |= {label: [pick(one, *path) for one in bodies] for label, path in ROWS}
    rows["steps"] = [job.status.progress.text if job.status.progress else None for job, _ in found]
    values = [curve.series()[1] for _, curve in found]
    rows["first loss"] = [one[0] if one else None for one in values]
    rows["last loss"] = [_last(job, one) for (job, _), one in zip(found, values, strict=True)]
    rows["least loss"] = [min(one) if one else None for one in values]
    kept = {label: cells for label, cells in rows.items() if any(cell is not None for cell in cells)}
    data = [
        {"name": job.name, **{label: cells[number] for label, cells in kept.items()}}
        for number, (job, _) in enumerate(found)
    ]

    def cell(value: Any) -> str:
        return short(value) if isinstance(value, float) else "" if value is None else str(value)

    marks = {label: "*" if len({str(one) for one in cells}) > 1 else "" for label, cells in kept.items()}
    lines = [[label, *map(cell, cells), marks[label]] for label, cells in kept.items()]
    session.answer(data, lambda: grid(["", *(job.name for job, _ in found), ""], lines))


def _last(job: FineTuneJob, values: list[float]) -> float | None:
    if values:
        return values[-1]
    return job.status.progress.loss if job.status.progress else None
