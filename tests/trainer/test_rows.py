"""Rows of the methods that need more than a conversation."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
from trainer.test_data import ASSISTANT, SYSTEM, USER, read
from tunesmith.api.methods import MethodType
from tunesmith_trainer.data import Row
from tunesmith_trainer.errors import DataError
from tunesmith_trainer.methods import MODULES

pytestmark = pytest.mark.trainer

WORSE = {"role": "assistant", "content": "B"}


def one(folder: Path, method: MethodType, row: dict[str, Any], **options: Any) -> Row:
    """A dataset of one row."""
    return read(folder / "d.jsonl", json.dumps(row), method=method, **options)[0]


def test_each_method_of_the_api_has_a_module() -> None:
    assert set(MODULES) == set(get_args(MethodType))


@pytest.mark.parametrize(
    "row",
    [
        {"query": "Q", "response": "A", "rejected_response": "B"},
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"messages": [USER, ASSISTANT], "rejected_response": "B"},
        {"messages": [USER, ASSISTANT], "rejected_messages": [USER, WORSE]},
        {"messages": [USER, ASSISTANT], "rejected_messages": [WORSE]},
        {"chosen": [USER, ASSISTANT], "rejected": [USER, WORSE]},
        {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [WORSE]},
    ],
)
@pytest.mark.parametrize("system", [False, True])
def test_pairs_read_to_the_same_two_conversations(tmp_path: Path, row: dict[str, Any], system: bool) -> None:
    found = one(tmp_path, "DPO", row | ({"system": "S"} if system else {}))
    head = [SYSTEM] if system else []
    assert list(found.messages) == [*head, USER, ASSISTANT]
    assert list(found.rejected) == [*head, USER, WORSE]


@pytest.mark.parametrize(("label", "expected"), [(True, True), (0, False), ("true", True), ("No", False), (1.0, True)])
def test_labels_of_answers(tmp_path: Path, label: object, expected: bool) -> None:
    assert one(tmp_path, "KTO", {"query": "Q", "response": "A", "label": label}).label is expected


@pytest.mark.parametrize(
    ("row", "messages", "extra"),
    [
        ({"query": "Q", "solution": "4", "level": 2}, [USER], {"solution": "4", "level": 2}),
        ({"prompt": [USER], "answer": "4"}, [USER], {"answer": "4"}),
        ({"messages": [SYSTEM, USER], "solution": "4"}, [SYSTEM, USER], {"solution": "4"}),
        ({"problem": "Q", "system": "S", "solution": "4"}, [SYSTEM, USER], {"solution": "4"}),
    ],
)
def test_prompts_keep_the_other_columns(
    tmp_path: Path, row: dict[str, Any], messages: list[Any], extra: dict[str, Any]
) -> None:
    found = one(tmp_path, "GRPO", row)
    assert list(found.messages) == messages
    assert found.extra == extra


def test_a_teachers_rows_may_have_answers(tmp_path: Path) -> None:
    assert list(one(tmp_path, "GKD", {"query": "Q", "response": "A"}).messages) == [USER, ASSISTANT]
    assert list(one(tmp_path, "GKD", {"query": "Q"}).messages) == [USER]
    assert list(one(tmp_path, "GKD", {"messages": [USER, ASSISTANT]}).messages) == [USER, ASSISTANT]


@pytest.mark.parametrize(
    ("row", "anchor", "positives", "negatives"),
    [
        ({"query": "Q", "positive": "P", "negative": "N"}, "Q", ("P",), ("N",)),
        ({"query": "Q", "positives": ["P", "R"], "negatives": ["N", "M"]}, "Q", ("P", "R"), ("N", "M")),
        ({"anchor": "Q", "pos": "P"}, "Q", ("P",), ()),
        ({"query": "Q", "response": "P", "rejected_response": ["N"]}, "Q", ("P",), ("N",)),
        ({"messages": [USER], "positive_messages": [ASSISTANT], "negative_messages": [[WORSE], [USER]]},
         (USER,), ((ASSISTANT,),), ((WORSE,), (USER,))),
    ],
)  # fmt: skip
def test_texts_that_are_alike(tmp_path: Path, row: dict[str, Any], anchor: Any, positives: Any, negatives: Any) -> None:
    found = one(tmp_path, "Embedding", row)
    assert (found.text or found.messages) == anchor
    assert (found.positives, found.negatives) == (positives, negatives)


def test_pairs_with_a_score(tmp_path: Path) -> None:
    found = one(tmp_path, "Embedding", {"sentence1": "a", "sentence2": "b", "score": "0.5"})
    assert (found.text, found.positives, found.label) == ("a", ("b",), 0.5)
    assert one(tmp_path, "RewardModel", {"prompt": "Q", "chosen": "A", "rejected": "B", "margin": 2}).margin == 2.0


@pytest.mark.parametrize(
    ("method", "row", "parts"),
    [
        ("DPO", {"query": "Q", "response": "A"}, ["no rejected answer", "rejected_response, rejected_messages"]),
        ("DPO", {"prompt": "Q", "chosen": "A"}, ["no rejected answer beside chosen"]),
        ("DPO", {"query": "Q", "response": "A", "rejected_response": ""}, ["rejected_response is empty"]),
        ("DPO", {"chosen": [USER, ASSISTANT], "rejected": [SYSTEM, USER, WORSE]}, ["follow different messages"]),
        ("DPO", {"chosen": [USER, ASSISTANT], "rejected": [USER]}, ["rejected does not end with an answer"]),
        ("RewardModel", {"prompt": "Q", "chosen": "A", "rejected": "B", "margin": "x"}, ["margin is text 'x'"]),
        (
            "RewardModel",
            {"prompt": "Q", "chosen": "A", "rejected": "B", "margin": math.nan},
            ["margin is a number nan"],
        ),
        ("KTO", {"query": "Q", "response": "A"}, ["label is missing", "true or false"]),
        ("KTO", {"query": "Q", "response": "A", "label": "maybe"}, ["label is text", "true or false"]),
        ("Classification", {"text": "x"}, ["no label"]),
        ("Classification", {"label": 1}, ["no text"]),
        ("Embedding", {"positive": "P"}, ["no query"]),
        ("Embedding", {"query": "Q", "positive": "P", "label": "x"}, ["label is text 'x'", "a number"]),
        ("Reranker", {"query": "Q", "negative": "N"}, ["no positive"]),
        ("GRPO", {"solution": "4"}, ["neither a conversation nor a question"]),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, method: MethodType, row: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        one(tmp_path, method, row)
    for part in ("datasets[0] pvc://c/d.jsonl row 1: ", *parts):
        assert part in str(caught.value)
