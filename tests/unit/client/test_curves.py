"""Curves are read out of the lines that trainers print."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from tunesmith import Curve
from tunesmith.training.logline import LogLine, parse


def line(step: int, loss: float, **metrics: float) -> LogLine:
    return LogLine(step=step, total_steps=10, loss=loss, learning_rate=1e-4, metrics=metrics)


def test_a_printed_line_is_read_back() -> None:
    printed = LogLine(
        step=120, total_steps=500, loss=1.23456, learning_rate=9.871e-05, tokens_per_second=1234.0,
        peak_memory_bytes=3 * 2**30, eta_seconds=7505, metrics={"rewards/margins": -0.25, "kl": 1e-9},
    )  # fmt: skip
    assert parse("some prefix " + printed.text() + "\n") == printed.model_copy(update={"eta_seconds": 7500})
    on_gpus = printed.model_copy(update={"mfu": 0.412, "eta_seconds": 60})
    assert "  mfu 41.2%  " in on_gpus.text()
    assert "mfu" not in printed.text()
    assert parse(on_gpus.text()) == on_gpus


@pytest.mark.parametrize("text", ["step 1/2", "loss 1.0", "", "step 1/2  loss nan  lr 1e-4  1 tokens/s  peak 1.0 GiB"])
def test_other_lines_are_none(text: str) -> None:
    assert parse(text) is None


def test_steps_that_come_again_after_a_resume_replace_those_that_were_lost() -> None:
    curve = Curve("x")
    for one in [line(1, 3.0), line(2, 2.0), line(3, 1.5), line(2, 2.1), line(3, 1.6)]:
        assert curve.add(one)
    assert curve.series() == ([1, 2, 3], [3.0, 2.1, 1.6])
    assert not curve.add(line(3, 1.6))


def test_a_long_curve_costs_no_more_for_each_step_than_a_short_one() -> None:
    curve = Curve("x")
    for step in range(1, 50_001):  # minutes, where each step looks at all others
        curve.add(line(step, 1.0))
    assert len(curve.points) == 50_000


def test_a_metric_that_is_no_number_is_a_gap_which_json_can_say() -> None:
    found = parse(line(1, 3.0, kl=float("nan"), reward=float("inf"), accuracy=0.5).text())
    assert found is not None
    assert found.metrics == {"accuracy": 0.5}


def test_a_metric_of_the_method_has_a_curve_of_its_own() -> None:
    curve = Curve("x")
    curve.add(line(1, 3.0))
    curve.add(line(2, 2.0, accuracy=0.5))
    assert curve.series("accuracy") == ([2], [0.5])
    assert curve.metrics() == ["loss", "learning_rate", "tokens_per_second", "accuracy"]


def test_a_notebook_shows_a_picture() -> None:
    curve = Curve("a <b>")
    for step in range(1, 6):
        curve.add(line(step, 1 / step))
    root = ElementTree.fromstring(curve._repr_html_())
    points = root.find("{http://www.w3.org/2000/svg}polyline").attrib["points"].split()  # type: ignore[union-attr]
    heights = [float(point.split(",")[1]) for point in points]
    assert heights == sorted(heights)  # a falling loss goes down
    assert Curve("empty")._repr_html_() == ""
