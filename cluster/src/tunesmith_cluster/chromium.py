"""The Chromium that drives the web console in tests: the machine's own, or Debian's."""

from __future__ import annotations

import os
import shutil

from tunesmith_cluster import packages
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.progress import Reporter

VARIABLE = "CONSOLE_CHROMIUM"
NAMES = ("chromium", "chromium-browser", "google-chrome")


def find() -> str | None:
    """The one that CONSOLE_CHROMIUM names, or one on PATH."""
    return os.environ.get(VARIABLE) or next(filter(None, map(shutil.which, NAMES)), None)


def ensure(reporter: Reporter) -> str:
    """A usable one, installed from Debian if there is none. Raises ClusterError."""
    if found := find():
        return found
    with reporter.step("install Debian's chromium, for the console's tests", usual_seconds=60):
        packages.install(["chromium"])
    if found := find():
        return found
    raise ClusterError(f"the package chromium brought no {' or '.join(NAMES)} on PATH: set {VARIABLE} to a Chromium")
