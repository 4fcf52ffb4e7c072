"""Resources as notebooks show them."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunesmith.client.resources import Resource

COLOURS = {"True": "#3d8b4f", "False": "#b3402a"}


def resource(one: Resource) -> str:
    """Name, state, progress and message."""
    found = one.condition()
    colour = COLOURS.get(found.status if found else "", "#8a6d1f")
    if found and found.type == "Ready" and found.status == "False":
        colour = "#8a6d1f"
    head = f"<b>{escape(one.kind)} {escape(one.name)}</b> <span style='color:{colour}'>{escape(one.reason)}</span>"
    return f"<div>{head}{_bar(one)}<div style='opacity:0.8'>{escape(one.message)}</div></div>"


def _bar(one: Any) -> str:
    progress = getattr(one.status, "progress", None)
    if progress is None:
        return ""
    loss = getattr(progress, "loss", None)  # of a training only
    words = [progress.text or "", f"loss {loss:.4g}" if loss is not None else ""]
    words.append(f"eta {progress.eta}" if progress.eta and not one.over else "")
    return (
        f"<div><progress max='100' value='{progress.percent}' style='width:20em'></progress> "
        f"{escape('  '.join(word for word in words if word))}</div>"
    )
