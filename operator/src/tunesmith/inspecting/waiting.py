"""Inputs on claims are waited for, and the operator is told what for."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tunesmith.inspecting.refusal import Reason, Refusal
from tunesmith.reporting import served
from tunesmith.training.location import locate
from tunesmith.training.report import PORT, Report

POLL_SECONDS = 1.0


def wait(model: str, inputs: Sequence[str], seconds: float) -> None:
    """Return when every path on a claim is there. Raises Refusal when one is not after `seconds` in all."""
    end = time.monotonic() + seconds
    port = int(os.environ.get("TUNESMITH_PROGRESS_PORT", PORT))
    wanted: list[tuple[str, Reason, str]] = [(model, "ModelError", "model")]
    wanted += [(uri, "DataError", "dataset") for uri in inputs]
    for uri, reason, what in wanted:
        place = locate(uri)
        if place.claim is None or Path(place.path).exists():
            continue
        message = f"{uri} does not exist yet; waiting up to {seconds:.0f} s for it to be written"
        print(message, flush=True)
        with served(port, partial(Report, waiting=message)):
            while not Path(place.path).exists() and time.monotonic() < end:
                time.sleep(min(POLL_SECONDS, max(0.0, end - time.monotonic())))
        if not Path(place.path).exists():
            raise Refusal(
                reason,
                f"{what} {uri}: nothing is at {place.path} after {seconds:.0f} s; {_nearest(Path(place.path))}. Check "
                "the address, or see that what writes it is done by then",
            )


def _nearest(path: Path) -> str:
    """The nearest folder that is there, and what is in it: a misspelt path is seen at once."""
    folder = next((parent for parent in path.parents if parent.is_dir()), Path("/"))
    return f"in {folder} there is {json.dumps(sorted(entry.name for entry in folder.iterdir())[:10])}"
