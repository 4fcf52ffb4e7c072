"""The tiny model of the trainer's tests, and what every cell needs beside it."""

from __future__ import annotations

import os
import re
from datetime import date
from pathlib import Path

import pytest
from trainer import multimodal as models
from trainer.conftest import THIRD_PARTY, make_plan, tiny, tokenizer  # noqa: F401  fixtures


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Narrow exceptions to `error`, as for the trainer's tests."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for one in THIRD_PARTY:
                item.add_marker(pytest.mark.filterwarnings(one))


@pytest.fixture(scope="session")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By modality, a tiny model that reads it: Qwen2.5-VL, Qwen3-VL, Qwen2-Audio."""
    return {
        "Image": models.qwen_vl(tmp_path_factory.mktemp("image")),
        "Video": models.qwen_vl(tmp_path_factory.mktemp("video"), 3),
        "Audio": models.qwen_audio(tmp_path_factory.mktemp("audio")),
    }


WORDS = {"passed": "runs", "failed": "**fails**", "skipped": "not run"}
HEAD = """\
# What the matrix saw

Written by `make matrix MATRIX_OUT=docs/matrix.md` on {date}: {passed} of {all} ran, in {minutes:.0f} minutes.
Each trains a tiny random model for two steps on CPU, over two processes or nodes where it is spread, and looks at its
losses, its artefact, and that weights changed. [capabilities.md](capabilities.md) has the table that they come from.

| combination | seen | seconds |
| --- | --- | --- |
"""
outcomes: dict[str, tuple[str, float]] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember how each cell ended."""
    cell = re.search(r"test_cell\[([\w-]+)\]", report.nodeid)
    if cell and (report.when == "call" or report.outcome != "passed"):
        outcomes[cell[1]] = (report.outcome, report.duration)


def pytest_sessionfinish() -> None:
    """Write the page, where MATRIX_OUT says to."""
    out = os.environ.get("MATRIX_OUT")
    if not out or not outcomes:
        return
    head = HEAD.format(
        date=f"{date.today():%Y-%m-%d}",
        passed=sum(outcome == "passed" for outcome, _ in outcomes.values()),
        all=len(outcomes),
        minutes=sum(seconds for _, seconds in outcomes.values()) / 60,
    )
    rows = (f"| {cell} | {WORDS[outcome]} | {seconds:.1f} |\n" for cell, (outcome, seconds) in outcomes.items())
    Path(out).write_text(head + "".join(rows))
