"""Resources as rows, bars and boxes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tunesmith.cli.session import grid, short
from tunesmith.client import FineTuneJob, InferenceJob, ModelDeployment
from tunesmith.client.resources import AnyResource
from tunesmith.training.report import duration

GIB = 2**30
KIND_STYLE = "dim"


def style(one: AnyResource) -> str:
    """Colour of a state."""
    if one.done:
        return "green"
    return "red" if one.failed else "yellow"


def body(one: AnyResource) -> dict[str, Any]:
    """As data."""
    return one.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)


def age(one: AnyResource, now: datetime | None = None) -> str:
    """Time since it was made."""
    if one.metadata.creation_timestamp is None:
        return ""
    made = datetime.fromisoformat(one.metadata.creation_timestamp)
    return duration(max(0.0, ((now or datetime.now(UTC)) - made).total_seconds()))


def measured(one: AnyResource) -> Any:
    """The progress in a job's status, if it has some: text, percent, eta; of a training the loss, too."""
    return getattr(one.status, "progress", None)


def loss(one: AnyResource) -> float | None:
    """The newest loss of a training."""
    return getattr(measured(one), "loss", None)


def progress(one: AnyResource) -> str:
    """How far it is: steps, rows, ready pods."""
    if not isinstance(one, ModelDeployment):
        now = measured(one)
        return now.text or "" if now else ""
    words = f"{one.status.ready_replicas or 0}/{one.spec.replicas} pods"
    return f"{words}, {one.status.adapters_summary} adapters" if one.status.adapters else words


def table(found: Sequence[AnyResource], everywhere: bool = False) -> Table:
    """One row each."""
    columns = [*(["namespace"] if everywhere else []), "kind", "name", "status", "progress", "loss", "eta", "age"]
    rows = []
    for one in found:
        now = measured(one)
        where = [one.metadata.namespace] if everywhere else []
        cells = [one.kind, one.name, Text(one.reason, style(one)), progress(one)]
        rows.append([*where, *cells, short(loss(one)), (now.eta or "") if now else "", age(one)])
    return grid([name.upper() for name in columns], rows)


def bars(found: Iterable[AnyResource]) -> RenderableType:
    """A live picture of several resources, and what each waits for."""
    table = Table(box=None, pad_edge=False, show_header=False)
    notes = []
    for one in found:
        now = measured(one)
        percent = 100 if one.done else now.percent if now else 0
        bar = ProgressBar(total=100, completed=percent, width=24, complete_style=style(one), finished_style="green")
        newest = "" if loss(one) is None else f"loss {short(loss(one))}"
        eta = f"eta {now.eta}" if now and now.eta and not one.over else ""
        name = Text.assemble((f"{one.kind} ", KIND_STYLE), one.name)
        table.add_row(name, bar, Text(one.reason, style(one)), progress(one), newest, eta)
        if not one.done:
            notes.append(Text(f"  {one.name}: {one.message}", "red" if one.failed else "dim"))
    return Group(table, *notes)


def line(one: AnyResource) -> str:
    """The same where there is no terminal."""
    words = [f"{one.kind} {one.name}: {one.reason}", progress(one)]
    words.append("" if loss(one) is None else f"loss {short(loss(one))}")
    words.append("" if one.done else one.message)
    return "  ".join(word for word in words if word)


def details(one: AnyResource) -> Group:
    """Everything about one resource that one wants to know first."""
    head = Text.assemble((f"{one.kind} ", KIND_STYLE), (one.name, "bold"), "  ", (one.reason, style(one)))
    parts: list[RenderableType] = [head, Text(one.message)]
    if isinstance(one, ModelDeployment):
        adapters = [(a.name, a.state, a.ready_pods, a.message or "") for a in one.status.adapters]
        parts += [Text(f"url  {one.status.url or ''}"), grid(["ADAPTER", "STATE", "PODS", ""], adapters)]
        return Group(*parts)
    if isinstance(one, FineTuneJob):
        if one.status.memory:
            parts.append(Text(f"memory  {one.status.memory.summary}"))
        if one.status.checkpoint:
            parts.append(Text(f"checkpoint  step {one.status.checkpoint.step}  {one.status.checkpoint.uri}"))
    if isinstance(one, InferenceJob) and one.status.metrics:
        parts.append(grid(["METRIC", ""], [(name, short(value)) for name, value in one.status.metrics.items()]))
    if one.status.artifact:
        parts.append(Text(f"artifact  {one.status.artifact.uri}"))
    if one.status.attempts:
        rows = [(a.number, a.nodes, a.reason, a.resumed_step, a.last_step, a.message) for a in one.status.attempts]
        parts.append(grid(["ATTEMPT", "NODES", "ENDED", "FROM", "TO", ""], rows))
    if one.status.failure and one.failed and one.status.failure.log:
        parts.append(Text("\n".join(f"  | {text}" for text in one.status.failure.log), "dim"))
    return Group(*parts)


def memory(status: Any) -> Table:
    """The estimate of a device's memory."""
    parts = ("weights", "gradients", "optimizer", "activations", "overhead", "total", "available")
    sizes = [(part, getattr(status, f"{part}_bytes")) for part in parts]
    rows = [(part, f"{size / GIB:.2f} GiB") for part, size in sizes if size is not None]
    return grid(["MEMORY", f"{status.strategy}"], rows)
