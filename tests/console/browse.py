"""Playwright's tests of operator/console/browser, in headless Chromium."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tunesmith_cluster import chromium, console
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.progress import Reporter


def pictures(folder: Path) -> Path:
    """Where screenshots go: $CONSOLE_OUTPUT, by default below a test's own folder."""
    return Path(os.environ.get("CONSOLE_OUTPUT") or folder / "pictures")


def browse(project: str, given: Mapping[str, str], output: Path, *more: str) -> None:
    """Run one of the projects of operator/console/playwright.config.ts. It finds `given` as CONSOLE_… variables."""
    reporter = Reporter()
    folder, node = console.workspace(Paths.from_environment(), reporter)
    variables = {**given, "CHROMIUM": chromium.ensure(reporter), "OUTPUT": str(output)}
    browsed = subprocess.run(
        node.command("run", "browse", "--", f"--project={project}", *more),
        cwd=folder,
        env={**node.environment(), **{f"CONSOLE_{name}": value for name, value in variables.items()}},
        capture_output=True,
        text=True,
        check=False,
    )
    print(browsed.stdout[-20_000:], browsed.stderr[-4000:])
    assert browsed.returncode == 0
