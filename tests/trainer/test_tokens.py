"""Rows within a length: what becomes of longer ones, and that they are tokenised once for all who need them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from trainer import bounded, processes
from trainer.support import losses
from tunesmith.api.training import Truncation
from tunesmith.training.plan import ChatPlan, TrainPlan
from tunesmith_trainer import masks
from tunesmith_trainer.cache import Cache, cache_of
from tunesmith_trainer.data import Row
from tunesmith_trainer.errors import DataError
from tunesmith_trainer.masks import IGNORED, Masker
from tunesmith_trainer.methods import prepare
from tunesmith_trainer.model import load_tokenizer
from tunesmith_trainer.reading import read_plan
from tunesmith_trainer.tokens import Limit, split_answers, tokenize
from tunesmith_trainer.train import train

pytestmark = pytest.mark.trainer

Make = Callable[..., TrainPlan]
LONG = Row("d row 7", text="the capital of Zhejiang is Hangzhou and this is a tiny model used for testing " * 3)
ALL = ("Right", "Left", "Drop", "Split", "Error")


def made(tokenizer: Any, row: Row, limit: Limit) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of what becomes of a row, beside a short one that stays as it is."""
    table = tokenize([row, Row("d row 8", text="hi")], Masker(tokenizer, "All"), limit).table
    return list(zip(table["input_ids"], table["labels"], strict=True))[:-1]


def test_the_ways_to_shorten_are_all_tested() -> None:
    assert set(ALL) == set(get_args(Truncation))


def test_a_long_text_is_cut_left_out_or_split(tokenizer: Any) -> None:
    whole = [*tokenizer(LONG.text)["input_ids"], tokenizer.eos_token_id]
    size = len(whole) // 3 + 1

    def learned(ids: list[int]) -> tuple[list[int], list[int]]:
        return ids, [IGNORED, *ids[1:]]

    assert made(tokenizer, LONG, Limit(size, "Right")) == [learned(whole[:size])]
    assert made(tokenizer, LONG, Limit(size, "Left")) == [learned(whole[-size:])]
    assert made(tokenizer, LONG, Limit(size, "Drop")) == []
    parts = made(tokenizer, LONG, Limit(size, "Split"))
    assert parts == [learned(whole[at : at + size]) for at in range(0, len(whole), size)]
    assert [token for ids, _ in parts for token in ids] == whole
    for way in ALL:
        assert made(tokenizer, LONG, Limit(len(whole), way)) == [learned(whole)]  # type: ignore[arg-type]


def test_where_no_row_may_be_longer_it_is_named(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"d row 7: it has \d+ tokens, spec.training.maxLength is 8 .*shorten the row"):
        made(tokenizer, LONG, Limit(8, "Error"))


def test_parts_of_a_conversation_without_an_answer_are_left_out(tokenizer: Any) -> None:
    asked = {"role": "user", "content": "hello world " * 20}
    row = Row("r", messages=(asked, {"role": "assistant", "content": "tiny model " * 20}))
    found = tokenize([row], Masker(tokenizer, "Assistant"), Limit(16, "Split")).table
    assert all(any(label != IGNORED for label in labels) for labels in found["labels"])
    answer = [label for labels in found["labels"] for label in labels if label != IGNORED]
    [whole] = tokenize([row], Masker(tokenizer, "Assistant"), Limit(512)).table["labels"]
    missing = [label for label in whole if label != IGNORED]
    assert len(missing) - len(answer) <= len(found)  # the first token of a part has nothing before it
    assert set(answer) <= set(missing)


def test_a_pair_is_shortened_on_both_sides_alike(tokenizer: Any) -> None:
    asked = {"role": "user", "content": "hello world " * 10}
    better, worse = ({"role": "assistant", "content": text} for text in ("a tiny model", "no"))
    row = Row("d row 1", messages=(asked, better), rejected=(asked, worse))
    short = Row("d row 2", messages=({"role": "user", "content": "hi"}, better), rejected=(
        {"role": "user", "content": "hi"}, worse))  # fmt: skip
    whole = split_answers([row], tokenizer, Limit(512), rejected=True)
    size = len(whole.prompts[0]) + 2
    right = split_answers([row], tokenizer, Limit(size), rejected=True)
    assert (right.prompts, right.answers) == (whole.prompts, [tuple(answer[:2] for answer in whole.answers[0])])
    left = split_answers([row], tokenizer, Limit(size, "Left"), rejected=True)
    assert left.answers == whole.answers
    [prompt] = left.prompts
    assert prompt == whole.prompts[0][-len(prompt) :]
    assert len(prompt) + max(map(len, whole.answers[0])) == size
    assert split_answers([row, short], tokenizer, Limit(size, "Drop"), rejected=True).kept == [1]
    with pytest.raises(DataError, match="d row 1: it has"):
        split_answers([row], tokenizer, Limit(size, "Error"), rejected=True)


METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "RewardModel": ({}, {"query": "q", "response": "a", "rejected_response": "b"}),
    "Classification": ({"classification": {"labels": ["x", "y"]}}, {"text": "q", "label": "x"}),
    "Embedding": ({}, {"query": "q", "positive": "a", "negative": "b"}),
    "Reranker": ({}, {"query": "q", "positive": "a", "negative": "b"}),
    "KTO": ({}, {"query": "q", "response": "a", "label": True}),
    "GKD": ({}, {"query": "q", "response": "a"}),
}


@pytest.mark.parametrize("name", [name for name in METHODS if name != "GKD"])
def test_each_method_refuses_or_leaves_out_what_is_longer(make_plan: Make, name: str) -> None:
    options, short = METHODS[name]
    key = "text" if "text" in short else "query"
    rows = [short, short, {**short, key: "hello world " * 40}]
    plan = make_plan(rows=rows, method={"type": name, **options}, max_length=64, truncation="Drop")
    assert len(prepare(plan, read_plan(plan), load_tokenizer(plan.model)).dataset) == 2
    plan = make_plan(rows=rows, method={"type": name, **options}, max_length=64, truncation="Error")
    with pytest.raises(DataError, match=r"row 3: it has \d+ tokens"):
        prepare(plan, read_plan(plan), load_tokenizer(plan.model))


def test_a_reward_model_may_read_the_end_of_what_is_too_long(make_plan: Make) -> None:
    rows = [{"query": "hello world " * 40, "response": "a", "rejected_response": "b"}]
    plan = make_plan(rows=rows, method={"type": "RewardModel"}, max_length=64, truncation="Left")
    tokenizer = load_tokenizer(plan.model)
    [row] = prepare(plan, read_plan(plan), tokenizer).dataset
    assert len(row["chosen_ids"]) == 64
    assert str(tokenizer.decode(row["chosen_ids"])).endswith("assistant\na<|im_end|>\n")


def test_tokens_are_made_once_until_something_they_depend_on_changes(
    make_plan: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, calls = make_plan(), []
    whole = masks.Masker.texts
    monkeypatch.setattr(masks.Masker, "texts", lambda self, row: calls.append(row) or whole(self, row))

    def counted(plan: TrainPlan) -> int:
        calls.clear()
        prepare(plan, read_plan(plan), load_tokenizer(plan.model, plan.chat_template))
        return len(calls)

    def changed(**training: Any) -> TrainPlan:
        return plan.model_copy(update={"training": plan.training.model_copy(update=training)})

    assert [counted(plan), counted(plan)] == [4, 0]
    assert [counted(changed(max_length=64)), counted(changed(truncation="Drop"))] == [4, 4]
    assert counted(changed(learning_rate=0.5)) == 0
    assert counted(plan.model_copy(update={"chat_template": ChatPlan(system="Be kind.")})) == 4
    pairs = make_plan(run="pairs", rows=[{"query": "q", "response": "a", "rejected_response": "b"}],
                      method={"type": "DPO"})  # fmt: skip
    assert [counted(pairs), counted(pairs)] == [2, 0]


def test_tokens_from_the_cache_are_those_that_were_made(make_plan: Make) -> None:
    plan = make_plan()
    tokenizer, rows = load_tokenizer(plan.model), read_plan(plan).rows
    first, second, plain = (
        tokenize(rows, Masker(tokenizer, "Assistant"), Limit(32), cache).table
        for cache in (cache_of(plan), cache_of(plan), Cache())
    )
    for name in ("input_ids", "labels"):
        for one, two, three in zip(first[name], second[name], plain[name], strict=True):
            assert np.array_equal(one, two)
            assert np.array_equal(one, three)


def test_what_packing_makes_is_not_written_into_the_cache(make_plan: Make) -> None:
    plan = make_plan(packing=True, micro_batch_size=1, global_batch_size=1, max_steps=1)
    train(plan)
    folder = cache_of(plan).folder
    assert folder
    entries = [sorted(one.name for one in entry.iterdir()) for entry in folder.iterdir() if entry.is_dir()]
    assert entries == [["notes.json", "table.arrow"]] * 2  # rows, and their tokens


@pytest.mark.parametrize(
    ("name", "truncation"), [("Classification", "Right"), ("Classification", "Left"), ("Reranker", "Right")]
)
def test_the_artefacts_tokenizer_does_not_cut(make_plan: Make, name: str, truncation: str) -> None:
    options, row = METHODS[name]
    row = {**row, "text" if "text" in row else "positive": "hello world " * 40}
    plan = make_plan(rows=[row], method={"type": name, **options}, max_length=32, truncation=truncation)
    tokenizer: Any = load_tokenizer(plan.model)
    before = tokenizer.truncation_side
    prepared = prepare(plan, read_plan(plan), tokenizer).dataset[0]
    ids = prepared["documents"][0] if name == "Reranker" else prepared["ids"]
    assert len(ids) == 32
    assert (tokenizer.backend_tokenizer.truncation, tokenizer.truncation_side) == (None, before)


def count_rendered(path: str) -> None:
    """Write down how many rows this process renders."""
    import os

    whole, calls = masks.Masker.texts, []

    def counted(self: Any, row: Row) -> Any:
        calls.append(row)
        Path(path, f"rendered-{os.getpid()}").write_text(str(len(calls)))
        return whole(self, row)

    masks.Masker.texts = counted  # type: ignore[method-assign]


def test_of_two_processes_one_tokenises_for_both(make_plan: Make, tmp_path: Path) -> None:
    plan = make_plan(processes=2, micro_batch_size=2, max_steps=2)
    processes.run(plan, tmp_path, count_rendered, (str(tmp_path),))
    assert [int(path.read_text()) for path in tmp_path.glob("rendered-*")] == [4]
    alone = make_plan(run="alone", max_steps=2)
    train(alone)
    assert losses(plan) == pytest.approx(losses(alone), rel=1e-5)


@pytest.mark.long
def test_rows_and_tokens_may_be_larger_than_the_memory(make_plan: Make, tmp_path: Path) -> None:
    """With the cache, three times the memory that there is; the same without it fails."""
    names = {}
    for run, count in (("small", 1000), ("large", 48_000)):
        rows = [{"text": f"{number:07}" * 24} for number in range(count)]
        plan = make_plan(run=run, max_length=256, method={"type": "PreTraining"}, rows=rows)
        names[run] = tmp_path / f"{run}.json"
        names[run].write_text(plan.model_dump_json())
    memory = 16 * 2**20
    kept, held = (
        subprocess.run(
            [sys.executable, bounded.__file__, *map(str, names.values()), str(memory), how],
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
        )
        for how in ("kept", "held")
    )
    assert kept.returncode == 0, kept.stderr
    whole, size = kept.stdout.split()[-2:]
    assert whole == "True"
    assert int(size) + (tmp_path / "large.jsonl").stat().st_size > 3 * memory
    assert held.returncode != 0
    assert "memory" in held.stderr.lower() or "alloc" in held.stderr.lower(), held.stderr
