"""Rows at random: they are read, or refused with the file and the row; nothing else happens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trainer.test_data import read
from tunesmith.api.methods import MethodType
from tunesmith_trainer.errors import DataError

pytestmark = pytest.mark.trainer

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner),
    max_leaves=8,
)
COLUMNS = ["messages", "prompt", "response", "chosen", "rejected", "query", "label", "text", "conversations", "system"]
ROWS = st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=4) | VALUES
FILES = st.lists(ROWS, min_size=1, max_size=3).map(lambda rows: "\n".join(map(json.dumps, rows)).encode())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(method=st.sampled_from(get_args(MethodType)), content=FILES | st.binary(max_size=60))
def test_no_file_of_rows_ends_in_anything_but_rows_or_a_data_error(
    tmp_path: Path, method: MethodType, content: bytes
) -> None:
    try:
        read(tmp_path / "rows.jsonl", content, method=method)
    except DataError as error:
        assert "rows.jsonl" in str(error)  # noqa: PT017 (either outcome is right)
