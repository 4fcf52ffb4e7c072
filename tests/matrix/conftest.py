"""The tiny model of the trainer's tests, and what every cell needs beside it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from trainer.conftest import THIRD_PARTY, make_plan, tiny, tokenizer  # noqa: F401  fixtures


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Narrow exceptions to `error`, as for the trainer's tests."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for one in THIRD_PARTY:
                item.add_marker(pytest.mark.filterwarnings(one))


WORDS = {"passed": "runs", "failed": "**fails**", "skipped": "not run"}
HEAD = """\
# What runs

Written by `make matrix MATRIX_OUT=docs/capabilities.md`, from what was seen in that run: each cell trains a tiny random
model for two steps on CPU and looks at its losses, its artefact, and that weights changed. DeepSpeed is ZeRO-2 in two
processes, Multi-Node two pods' torchrun, both over LoRA. Correctness of each loss is tested apart (`tests/trainer`).
Multi-modal training is not carried out yet.

"""
outcomes: dict[tuple[str, str], str] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember how each cell ended."""
    cell = re.search(r"test_cell\[(\w+)-([\w-]+)\]", report.nodeid)
    if cell and (report.when == "call" or report.outcome != "passed"):
        outcomes[cell[1], cell[2]] = report.outcome


def pytest_sessionfinish() -> None:
    """Write the table, where MATRIX_OUT says to."""
    out = os.environ.get("MATRIX_OUT")
    if not out or not outcomes:
        return
    methods, columns = (list(dict.fromkeys(key[n] for key in outcomes)) for n in (0, 1))
    rows = [["Method", *columns], ["---"] * (1 + len(columns))]
    rows += [[m, *(WORDS[outcomes.get((m, c), "skipped")] for c in columns)] for m in methods]
    Path(out).write_text(HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows))
