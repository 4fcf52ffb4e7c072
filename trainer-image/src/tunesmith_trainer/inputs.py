"""Inputs on a claim may be written by another pod that was applied together with this one: they are waited for."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tunesmith.training.location import locate
from tunesmith.training.plan import MergePlan, Place, TrainPlan

WAIT_SECONDS = float(os.environ.get("TUNESMITH_INPUT_WAIT_SECONDS", "600"))
"""After this time the absence is an error, which the reader of the input tells in its own words."""
POLL_SECONDS = 1.0


def wait_for_inputs(plan: TrainPlan | MergePlan, seconds: float = WAIT_SECONDS) -> None:
    """Return when every path on a claim is there, or after `seconds` in all."""
    end = time.monotonic() + seconds
    for place in _on_claims(plan):
        said = False
        while not Path(place.path).exists() and time.monotonic() < end:
            if not said:
                print(f"{place.uri} does not exist yet; waiting up to {seconds:.0f} s for it", flush=True)
                said = True
            time.sleep(POLL_SECONDS)


def _on_claims(plan: TrainPlan | MergePlan) -> list[Place]:
    others: list[Place] = list(plan.datasets if isinstance(plan, TrainPlan) else plan.adapters)
    return [place for place in [plan.model, *others] if locate(place.uri).claim]
