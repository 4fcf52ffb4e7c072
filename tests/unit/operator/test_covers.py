"""When is a live child what it should be? A wrong No means a write at every pass, a wrong Yes a drift unseen."""

from __future__ import annotations

from typing import Any

import pytest
from tunesmith.kube.compare import covers


@pytest.mark.parametrize(
    ("live", "wanted", "same"),
    [
        ({"a": 1, "filled": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({}, {"a": {}}, False),
        ({"a": [{"n": "x", "more": 1}]}, {"a": [{"n": "x"}]}, True),
        ({"a": [1, 2]}, {"a": [1]}, False),
        ({}, {"a": []}, True),
        ({"limits": {"cpu": "1", "memory": "1Gi"}}, {"limits": {"cpu": "1000m", "memory": "1024Mi"}}, True),
        ({"limits": {"cpu": "1"}}, {"limits": {"cpu": "2"}}, False),
        ({}, {"limits": {"cpu": 1}}, False),
        ({}, {"value": ""}, True),
        ({"value": "x"}, {"value": ""}, False),
    ],
)
def test_what_is_filled_in_does_not_matter_and_what_is_wanted_does(live: Any, wanted: Any, same: bool) -> None:
    assert covers(live, wanted) is same
