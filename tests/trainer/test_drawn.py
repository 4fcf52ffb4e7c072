"""Rows that become tokens when they are drawn: the same training as where all are tokens before."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from trainer import multimodal as models
from trainer import processes, support
from trainer.support import ROWS, losses
from trainer.test_preferences import METHODS, rows_of
from trainer.test_resume import OPTIONS, TUNERS, act_after, log
from tunesmith.training.plan import TrainPlan
from tunesmith_trainer.data import Row
from tunesmith_trainer.drawn import WORKERS, lazy_texts
from tunesmith_trainer.errors import DataError
from tunesmith_trainer.masks import Masker
from tunesmith_trainer.methods import prepare
from tunesmith_trainer.model import load_tokenizer
from tunesmith_trainer.reading import read_plan
from tunesmith_trainer.tokens import Limit, tokenize
from tunesmith_trainer.train import train

pytestmark = pytest.mark.trainer

Make = Callable[..., TrainPlan]
LONG = {"query": "hello world " * 40, "response": "Hangzhou"}
LEARNED: dict[str, dict[str, Any]] = {
    "SFT": {"rows": (ROWS * 3)[:10]},
    "PreTraining": {"rows": [{"text": row["response"] * 3} for row in (ROWS * 3)[:10]]},
    **{name: {"rows": rows_of(name)} for name in METHODS if name != "RewardModel"},
}


@pytest.mark.parametrize("name", LEARNED)
def test_losses_and_weights_are_those_of_tokens_made_before(make_plan: Make, name: str) -> None:
    """To the last bit, over the end of an epoch and with dropout."""
    method = METHODS.get(name, {"type": name})
    options = {**LEARNED[name], "method": method, "tuner": TUNERS["LoRA"], "max_steps": 5}
    cached, lazy = (
        make_plan(run=how, tokenization=how, **options) for how in ("Cached", "Lazy")
    )  # fmt: skip
    endings = [train(plan) for plan in (cached, lazy)]
    assert log(lazy) == log(cached)
    assert len(log(lazy)) == 5
    digests = [ending.artifact.digest for ending in endings if ending.artifact]
    assert digests[0] == digests[1]


def test_rows_become_tokens_when_they_are_drawn_and_by_the_loaders_processes(
    make_plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Masker.texts

    def texts(self: Masker, row: Row) -> Any:
        with (tmp_path / f"made-{os.getpid()}").open("a") as file:
            file.write(f"{row.where}\n")
        return whole(self, row)

    monkeypatch.setattr(Masker, "texts", texts)
    plan = make_plan(rows=ROWS * 100, tokenization="Lazy", max_steps=2, global_batch_size=2, micro_batch_size=1)
    train(plan)
    made = {path.name: len(path.read_text().splitlines()) for path in tmp_path.glob("made-*")}
    assert made.pop(f"made-{os.getpid()}") <= 2, "the first row, to see that it can be"
    assert len(made) == WORKERS
    assert sum(made.values()) <= 4 + 1 + 2 * WORKERS, "four rows, and those that are read ahead"


def test_where_a_row_has_nothing_to_learn_the_next_one_is_taken_whatever_the_number_of_processes(
    make_plan: Make, tmp_path: Path
) -> None:
    rows = [ROWS[0], LONG, ROWS[1], LONG, LONG, ROWS[2]]
    options: dict[str, Any] = {"max_length": 64, "max_steps": 3, "global_batch_size": 6, "micro_batch_size": 1}
    lazy = {"truncation": "Drop", "tokenization": "Lazy"}
    taken = [ROWS[0], ROWS[1], ROWS[1], ROWS[2], ROWS[2], ROWS[2]]
    by_hand = make_plan(run="by-hand", rows=taken, **options)
    train(by_hand)
    one = make_plan(run="one", rows=rows, **options, **lazy)
    ending = train(one)
    # Rows that are tokens already are put into micro-batches by their lengths.
    assert losses(one) == pytest.approx(losses(by_hand), rel=1e-6)
    # In each of three passes three rows, one of which another follows.
    assert f"{3 * 4} times a row with nothing to learn was drawn, and the next one taken" in ending.message
    two = make_plan(run="two", rows=rows, processes=2, **options, **lazy)
    [first, _] = processes.run(two, tmp_path)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    found = first.ending()
    assert found
    assert f"{3 * 4} times a row" in found.message


@pytest.mark.long
def test_a_run_of_two_processes_one_of_which_is_killed_goes_on_exactly(make_plan: Make, tmp_path: Path) -> None:
    whole, broken = (
        make_plan(run=run, tuner=TUNERS["LoRA"], processes=2, tokenization="Lazy", **OPTIONS)
        for run in ("whole", "broken")
    )
    [expected, _] = processes.run(whole, tmp_path)
    processes.wait(processes.start(broken, tmp_path, act_after, (5, "1", signal.SIGKILL)))
    [found, _] = processes.run(broken.model_copy(update={"attempt": 2}), tmp_path)
    assert "resuming from checkpoint-4" in found.output()
    assert log(broken) == log(whole)
    endings = [one.ending() for one in (expected, found)]
    digests = [ending.artifact.digest for ending in endings if ending and ending.artifact]
    assert len(digests) == 2
    assert digests[0] == digests[1]


def test_all_texts_of_a_row_are_drawn_with_it(make_plan: Make, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A template that drops the reasoning of earlier turns makes a text of each turn that reasoned."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if not loop.last and '</think>' in m['content'] %}"
        "{{ m['content'].split('</think>')[1] }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    monkeypatch.setattr(tokenizer, "chat_template", template)
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "<think>well</think>hello"}]
    rows = [Row("d row 1", messages=(*turns, *turns)), Row("d row 2", messages=tuple(turns))]
    masker, plan = Masker(tokenizer, "Assistant"), make_plan(tokenization="Lazy")
    drawn, table = lazy_texts(plan, rows, masker).__getitems__([0, 1]), tokenize(rows, masker, Limit.of(plan)).table
    assert len(drawn) == 3
    assert [one["input_ids"] for one in drawn] == [list(ids) for ids in table["input_ids"]]
    assert [one["labels"] for one in drawn] == [list(labels) for labels in table["labels"]]


def test_what_can_be_learned_from_no_row_is_told_before_the_model_is_loaded(make_plan: Make) -> None:
    plan = make_plan(rows=[LONG, LONG], max_length=16, truncation="Drop", tokenization="Lazy")
    with pytest.raises(DataError, match=r"nothing to learn is left of 2 rows.*spec.training.maxLength"):
        prepare(plan, read_plan(plan), load_tokenizer(plan.model))


def test_a_row_that_cannot_be_learned_from_ends_the_job_when_it_is_drawn_and_is_named(
    make_plan: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = make_plan(rows=[*ROWS, *ROWS, LONG], max_length=64, truncation="Error", tokenization="Lazy", max_steps=3)
    [rank] = processes.start(plan, tmp_path)
    assert processes.wait([rank]) == [65], rank.output()
    ending = rank.ending()
    assert ending
    assert ending.reason == "DataError"
    assert re.match(r"datasets\[0\] configmap://data/run.jsonl row 9: it has \d+ tokens, spec", ending.message)
    assert "\n" not in ending.message


def test_the_rows_to_evaluate_on_are_tokens_before(make_plan: Make) -> None:
    plan = make_plan(rows=ROWS * 2, tokenization="Lazy", max_steps=2)
    plan = plan.model_copy(update={"validation": plan.validation.model_copy(update={"split": 2.0, "every_steps": 1})})
    cached = make_plan(run="cached", rows=ROWS * 2, max_steps=2).model_copy(update={"validation": plan.validation})
    found = [train(one).best for one in (plan, cached)]
    assert found[0]
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["SFT", "DPO"])
def test_media_are_those_of_the_rows_that_are_drawn(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("TUNESMITH_TERMINATION_LOG", str(tmp_path / "termination-log"))
    colours = list(models.pictures(tmp_path))
    rows = [
        {"query": "<image>which colour?", "response": one, "rejected_response": "no", "images": [f"{one}.png"]}
        for one in colours
    ]
    make = partial(support.make_plan, tmp_path, models.qwen_vl(tmp_path_factory.mktemp("vl")), rows=rows)
    options: dict[str, Any] = {"max_steps": 4, "global_batch_size": 2, "micro_batch_size": 2, "method": {"type": name}}
    cached, lazy = (make(run=how, tokenization=how, **options) for how in ("Cached", "Lazy"))
    for plan in (cached, lazy):
        train(plan)
    assert log(lazy) == log(cached)
