"""Datasets: files of every kind and layout, mixing, what is left out, and a cache that is whole or not there."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from trainer.test_data import ASSISTANT, USER, questions, read, write_rows
from tunesmith.training.plan import DatasetPlan
from tunesmith_trainer import reading
from tunesmith_trainer.cache import Cache, Notes
from tunesmith_trainer.data import Row
from tunesmith_trainer.errors import DataError
from tunesmith_trainer.media import Medium
from tunesmith_trainer.reading import Dropped, read_datasets, write_dropped
from tunesmith_trainer.rows import decode, encode

pytestmark = pytest.mark.trainer

CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def test_every_kind_of_file_reads_alike(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import feather, ipc

    line = json.dumps({"query": "Q", "response": "A"}).encode()
    table = pyarrow.table({"query": ["Q"], "response": ["A"]})
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line))
    with pyarrow.CompressedOutputStream(str(tmp_path / "b.jsonl.zst"), "zstd") as file:
        file.write(line)
    (tmp_path / "c.tsv").write_text("query\tresponse\nQ\tA\n")
    (tmp_path / "d.json").write_bytes(line + b"\n")
    with ipc.new_stream(str(tmp_path / "e.arrow"), table.schema) as writer:
        writer.write(table)
    feather.write_feather(table, str(tmp_path / "f.feather"))
    rows = read(tmp_path)
    assert [list(row.messages) for row in rows] == [[USER, ASSISTANT]] * 6


def test_a_repositorys_card_says_which_files_a_subset_and_a_split_have(tmp_path: Path) -> None:
    for name in ("x/0", "y/0", "y/held"):
        write_rows(tmp_path / f"{name}.jsonl", [name])
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  data_files: x/*.jsonl\n- config_name: two\n  data_files:\n"
        "  - {split: train, path: y/0.jsonl}\n  - {split: test, path: [y/held.jsonl]}\n---\nhello\n"
    )
    assert questions(read(tmp_path, subset="one")) == ["x/0"]
    assert questions(read(tmp_path, subset="two")) == ["y/0"]
    assert questions(read(tmp_path, subset="two", split="test")) == ["y/held"]
    with pytest.raises(DataError, match=r"has the subsets \['one', 'two'\]: set datasets\[0\].subset"):
        read(tmp_path)
    with pytest.raises(DataError, match=r"datasets\[0\].subset: 'three' is none of"):
        read(tmp_path, subset="three")
    with pytest.raises(DataError, match=r"has the splits \['test', 'train'\]: set datasets\[0\].split"):
        read(tmp_path, subset="two", split="dev")


def test_patterns_and_folders_choose_files(tmp_path: Path) -> None:
    for name in ("2023/part-0", "2024/part-0", "2024/part-1"):
        write_rows(tmp_path / f"{name}.jsonl", [name])
    assert questions(read(tmp_path, files=["2024/*.jsonl"])) == ["2024/part-0", "2024/part-1"]
    assert questions(read(tmp_path, subset="2023")) == ["2023/part-0"]
    with pytest.raises(DataError, match=r"no data files that fit \['\*.csv'\]"):
        read(tmp_path, files=["*.csv"])


@pytest.mark.parametrize(
    "messages",
    [
        [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"x": 1}'}}]}],
        [USER, {"role": "tool_call", "content": '{"name": "f", "arguments": {"x": 1}}'}],
        [USER, {"role": "assistant", "content": [{"type": "tool_use", "name": "f", "input": {"x": 1}}]}],
    ],
)
def test_calls_of_every_maker_read_to_openais(tmp_path: Path, messages: list[Any]) -> None:
    row = read(tmp_path / "d.jsonl", json.dumps({"messages": messages, "tools": '[{"name": "f"}]'}))[0]
    assert list(row.messages) == [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    assert row.tools == [{"name": "f"}]


def test_results_of_tools_are_turns_of_their_own(tmp_path: Path) -> None:
    result = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "R"}]}
    messages = [
        USER,
        {"role": "tool_call", "content": '{"name": "f"}'},
        {"role": "user", "content": [result]},
        ASSISTANT,
    ]
    row = read(tmp_path / "d.jsonl", json.dumps({"messages": messages}))[0]
    assert [m["role"] for m in row.messages] == ["user", "assistant", "tool", "assistant"]
    assert row.messages[2]["content"] == "R"


def test_keys_roles_and_columns_are_mapped(tmp_path: Path) -> None:
    row = read(
        tmp_path / "d.jsonl",
        json.dumps({"m": [{"who": "Customer", "what": "Q"}, {"who": "Agent", "what": "A"}], "bad": "B"}),
        method="DPO",
        columns={
            "messages": "m", "role": "who", "content": "what", "rejected": "bad",
            "roles": {"Customer": "user", "Agent": "assistant"},
        },
    )[0]  # fmt: skip
    assert list(row.messages) == [USER, ASSISTANT]
    assert row.rejected[-1]["content"] == "B"


def test_history_comes_before_the_question(tmp_path: Path) -> None:
    row = read(tmp_path / "d.jsonl", json.dumps({"history": [["q", "a"]], "query": "Q", "response": "A"}))[0]
    assert [m["content"] for m in row.messages] == ["q", "a", "Q", "A"]


def test_rows_of_a_set_that_is_not_strict_are_left_out_and_listed(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"query": "1", "response": "A"}\n{oops\n{"query": "2"}\n{"query": "3", "response": "A"}\n')
    dataset = DatasetPlan(uri="pvc://c/d.jsonl", path=str(path))
    with pytest.raises(DataError, match="row 2: no valid JSON"):
        read_datasets([dataset], "SFT", 0)
    data = read_datasets([dataset.model_copy(update={"strict": False})], "SFT", 0)
    assert questions(data.rows) == ["1", "3"]
    assert [one.row for one in data.dropped] == [
        "datasets[0] pvc://c/d.jsonl row 2",
        "datasets[0] pvc://c/d.jsonl row 3",
    ]
    write_dropped(tmp_path, data.dropped)
    listed = [Dropped(**json.loads(line)) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert listed == data.dropped
    assert "no answer" in listed[1].reason


def test_weights_mix_datasets(tmp_path: Path) -> None:
    sets = [
        write_rows(tmp_path / f"{name}.jsonl", (f"{name}{i}" for i in range(count))).model_copy(update={"weight": w})
        for name, count, w in (("a", 3000, 3.0), ("b", 300, 1.0))
    ]
    first = questions(read_datasets(sets, "SFT", 1, stopping="FirstExhausted").rows)
    assert Counter(name[0] for name in first)["b"] == 300
    assert 0.7 < sum(name[0] == "a" for name in first) / len(first) < 0.8
    every = questions(read_datasets(sets, "SFT", 1, stopping="AllExhausted").rows)
    assert set(every) == {f"a{i}" for i in range(3000)} | {f"b{i}" for i in range(300)}
    assert first == questions(read_datasets(sets, "SFT", 1, stopping="FirstExhausted").rows)


def test_rows_are_read_once_until_a_file_or_an_option_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, cache, read_files = write_rows(tmp_path / "d.jsonl", "ab"), Cache(tmp_path / "cache"), []

    def counted(path: Path, where: str, uri: str) -> Iterator[Any]:
        read_files.append(path)
        return original(path, where, uri)

    original = reading.read_file
    monkeypatch.setattr(reading, "read_file", counted)
    for _ in range(2):
        assert questions(read_datasets([dataset], "SFT", 0, cache=cache).rows) == ["a", "b"]
    assert len(read_files) == 1
    read_datasets([dataset.model_copy(update={"variables": {"X": "y"}})], "SFT", 0, cache=cache)
    assert len(read_files) == 2
    write_rows(tmp_path / "d.jsonl", "abc")
    assert questions(read_datasets([dataset], "SFT", 0, cache=cache).rows) == ["a", "b", "c"]
    assert len(read_files) == 3


def slow(notes: Notes) -> Iterator[Any]:
    """Two batches, with time to be killed between them."""
    import pyarrow

    yield pyarrow.record_batch({"row": ["1"]})
    time.sleep(notes.setdefault("pause", 0.5))
    yield pyarrow.record_batch({"row": ["2"]})


def endless(folder: Path) -> None:
    """Make an entry, and never come to its end."""

    def make(notes: Notes) -> Iterator[Any]:
        notes["pause"] = 600
        return slow(notes)

    Cache(folder).table("key", make)


def test_a_process_that_is_killed_leaves_no_half_entry(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=endless, args=(tmp_path,))
    process.start()
    end = time.monotonic() + 60
    while not list(tmp_path.glob(".tmp-key-*/table.arrow")) and time.monotonic() < end:
        time.sleep(0.05)
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    process.close()
    assert not (tmp_path / "key").exists()
    table, notes = Cache(tmp_path).table("key", slow)
    assert table["row"][:] == ["1", "2"]
    assert notes == {"pause": 0.5}
    assert not list(tmp_path.glob(".tmp-*"))


def counting(folder: Path) -> None:
    """Make an entry, and say that it was made here."""

    def make(notes: Notes) -> Iterator[Any]:
        (folder / f"made-{os.getpid()}").touch()
        return slow(notes)

    assert len(Cache(folder / "cache").table("key", make)[0]) == 2


def test_processes_that_come_together_make_an_entry_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=counting, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    for process in processes:
        process.close()
    assert len(list(tmp_path.glob("made-*"))) == 1


def test_a_row_with_media_is_the_same_from_the_table(tmp_path: Path) -> None:
    still = Medium("image", "r images[0]", content=b"\x00\xff")
    video = Medium("video", "r videos[0]", frames=(still, Medium("image", "r", path="/x.png")))
    parts = [{"type": "text", "text": "Q"}, {"type": "video", "medium": video}]
    row = Row("r", messages=({"role": "user", "content": parts}, ASSISTANT), extra={"raw": b"1"}, positives=((USER,),))
    assert decode(encode(row)) == row


@pytest.mark.parametrize(
    ("said", "expected"),
    [({"loss": False}, False), ({"weight": 1}, True), ({"weight": 0.5}, 0.5), ({"loss_scale": 2}, 2.0)],
)
def test_messages_say_how_much_they_are_learned(tmp_path: Path, said: dict[str, Any], expected: float) -> None:
    row = read(tmp_path / "d.jsonl", json.dumps({"messages": [USER, ASSISTANT | said]}))[0]
    assert row.messages[1] == ASSISTANT | {"loss": expected}
    assert type(row.messages[1]["loss"]) is type(expected)


@pytest.mark.parametrize("said", ["-0.5", "1001", "NaN", "Infinity", '"0.5"'])
def test_a_loss_that_is_no_weight_is_refused(tmp_path: Path, said: str) -> None:
    row = json.dumps({"messages": [USER, ASSISTANT | {"loss": "?"}]}).replace('"?"', said)
    with pytest.raises(DataError, match=r"messages\[1\] has the loss .*true, false or a number from 0 to 1000"):
        read(tmp_path / "d.jsonl", row)
