"""Inputs on a claim may be written by another pod that was applied together with this one: they are waited for."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

from tunesmith.reporting import served
from tunesmith.training.location import locate
from tunesmith.training.plan import AnyPlan
from tunesmith.training.report import Report

from tunesmith_trainer.server import PORT, Server

WAIT_SECONDS = float(os.environ.get("TUNESMITH_INPUT_WAIT_SECONDS", "600"))
"""After this time the absence is an error, which the reader of the input tells in its own words."""
POLL_SECONDS = 1.0


def wait_for_inputs(plan: AnyPlan, port: int = PORT, seconds: float = WAIT_SECONDS) -> None:
    """Return when every path on a claim is there, or after `seconds` in all. What is waited for is served at `port`."""
    end = time.monotonic() + seconds
    for wanted in plan.inputs:
        if not locate(wanted.uri).claim or Path(wanted.path).exists():
            continue
        message = f"{wanted.uri} does not exist yet; waiting up to {seconds:.0f} s for it to be written"
        print(message, flush=True)
        with served(port, partial(Report, waiting=message), Server, alone=False):
            while not Path(wanted.path).exists() and time.monotonic() < end:
                time.sleep(POLL_SECONDS)
