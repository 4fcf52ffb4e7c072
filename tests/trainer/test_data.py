"""Rows: every known form reads to the same conversation, and every bad row says where and what it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tunesmith.api.methods import MethodType
from tunesmith.training.plan import DatasetPlan, ValidationPlan
from tunesmith_trainer.cache import Cache
from tunesmith_trainer.data import Row
from tunesmith_trainer.errors import DataError
from tunesmith_trainer.reading import read_datasets
from tunesmith_trainer.rows import Rows

pytestmark = pytest.mark.trainer

USER = {"role": "user", "content": "Q"}
ASSISTANT = {"role": "assistant", "content": "A"}
SYSTEM = {"role": "system", "content": "S"}


def read(
    path: Path, text: str | bytes | None = None, method: MethodType = "SFT", seed: int = 0, **options: Any
) -> list[Row]:
    """Rows of one dataset, whose file is written first."""
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    dataset = DatasetPlan(uri=f"pvc://c/{path.name}", path=str(path), **options)
    return list(read_datasets([dataset], method, seed).rows)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [USER, ASSISTANT]}, [USER, ASSISTANT]),
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, [USER, ASSISTANT]),
        ({"messages": [USER, ASSISTANT], "system": "S"}, [SYSTEM, USER, ASSISTANT]),
        ({"messages": [SYSTEM, USER, ASSISTANT], "system": "other"}, [SYSTEM, USER, ASSISTANT]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}, ASSISTANT]}, [USER, ASSISTANT]),
        ({"messages": json.dumps([USER, ASSISTANT])}, [USER, ASSISTANT]),
        ({"instruction": "Q", "output": "A"}, [USER, ASSISTANT]),
        ({"instruction": "Q", "input": "", "output": "A"}, [USER, ASSISTANT]),
        ({"instruction": "Q", "input": "X", "output": "A"}, [{"role": "user", "content": "Q\nX"}, ASSISTANT]),
        ({"query": "Q", "response": "A", "tag": "en"}, [USER, ASSISTANT]),
        ({"prompt": "Q", "completion": "A"}, [USER, ASSISTANT]),
        ({"question": "Q", "answer": "A"}, [USER, ASSISTANT]),
        ({"input": "Q", "output": "A"}, [USER, ASSISTANT]),
        ({"problem": "Q", "solution": "A", "system_prompt": "S"}, [SYSTEM, USER, ASSISTANT]),
        ({"question": "Q", "answers": ["A"]}, [USER, ASSISTANT]),
        ({"query": "Q", "text": "A"}, [USER, ASSISTANT]),
        ({"query": "Q", "response": None, "output": "A"}, [USER, ASSISTANT]),
    ],
)
def test_known_forms_read_to_the_same_conversation(
    tmp_path: Path, row: dict[str, Any], expected: list[dict[str, str]]
) -> None:
    assert list(read(tmp_path / "d.jsonl", json.dumps(row))[0].messages) == expected


def test_columns_are_mapped(tmp_path: Path) -> None:
    rows = read(
        tmp_path / "d.jsonl", '{"q": "Q", "a": "A", "s": "S"}', columns={"query": "q", "response": "a", "system": "s"}
    )
    assert list(rows[0].messages) == [SYSTEM, USER, ASSISTANT]


def test_text_rows_are_text(tmp_path: Path) -> None:
    assert read(tmp_path / "d.jsonl", '{"text": "T", "source": "web"}', method="PreTraining")[0].text == "T"
    assert read(tmp_path / "d.jsonl", '{"body": "T", "query": "x"}', columns={"text": "body"})[0].text == "T"


def test_csv_json_and_parquet_read_as_jsonl_does(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"query": ["Q"], "response": ["A"]}), tmp_path / "d.parquet")
    for rows in (
        read(tmp_path / "d.csv", 'query,response\nQ,"A"\n'),
        read(tmp_path / "d.json", '[{"query": "Q", "response": "A"}]'),
        read(tmp_path / "d.parquet"),
        read(tmp_path / "bom.jsonl", b'\xef\xbb\xbf{"query": "Q", "response": "A"}\r\n\r\n'),
        read(tmp_path / "empty-line.json", b'\xef\xbb\xbf\n \r\n{"query": "Q", "response": "A"}\n'),
    ):
        assert [list(row.messages) for row in rows] == [[USER, ASSISTANT]]


def test_a_folder_gives_its_training_files_only(tmp_path: Path) -> None:
    for name in ("train-0.jsonl", "train-1.jsonl", "test.jsonl", ".hidden.jsonl"):
        (tmp_path / name).write_text(json.dumps({"query": name, "response": "A"}))
    (tmp_path / "README.md").write_text("hello")
    assert [row.messages[0]["content"] for row in read(tmp_path)] == ["train-0.jsonl", "train-1.jsonl"]


def test_variables_are_filled_in_every_text_and_others_are_left(tmp_path: Path) -> None:
    text = json.dumps({"system": "{{NAME}}", "query": "{{ NAME }}?", "response": "{{NAME}} {{OTHER}} {x}"})
    row = read(tmp_path / "d.jsonl", text, variables={"NAME": r"Xiao \1 Huang"})[0]
    assert [m["content"] for m in row.messages] == [
        r"Xiao \1 Huang", r"Xiao \1 Huang?", r"Xiao \1 Huang {{OTHER}} {x}",
    ]  # fmt: skip


def test_sample_draws_by_seed_without_repetition_until_it_must(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    text = "".join(json.dumps({"query": str(i), "response": "A"}) + "\n" for i in range(10))

    def drawn(count: int, seed: int) -> list[str]:
        return [row.messages[0]["content"] for row in read(path, text, sample=count, seed=seed)]

    assert len(set(drawn(5, 1))) == 5
    assert drawn(5, 1) == drawn(5, 1) != drawn(5, 2)
    assert sorted(drawn(25, 1)[:20]) == sorted([str(i) for i in range(10)] * 2)
    assert len(drawn(25, 1)) == 25


GOOD = '{"query": "Q", "response": "A"}\n'


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        (
            "d.jsonl",
            GOOD * 16 + '{"query": "Q"}\n',
            [
                "datasets[0] pvc://c/d.jsonl row 17: no answer: found columns ['query']",
                "expected a response in one of ['response', 'answer', 'output'",
                "map it with datasets[0].columns.response",
            ],
        ),
        ("d.jsonl", GOOD + "\n{oops\n", ["row 3: no valid JSON", "one object on one line"]),
        ("d.jsonl", "[1]\n", ["row 1: found a list; expected an object"]),
        (
            "d.jsonl",
            '{"a": "Q", "b": "A"}',
            ["row 1", "found columns ['a', 'b']", "expected messages, or one of ['query'", "datasets[0].columns"],
        ),
        (
            "d.jsonl",
            '{"response": "A"}',
            ["row 1: no question: found columns ['response']", "datasets[0].columns.query"],
        ),
        ("d.jsonl", '{"query": "Q", "response": " "}', ["row 1: response is empty", "leave the row out"]),
        ("d.jsonl", '{"query": "Q", "response": null}', ["row 1: response is nothing", "expected text as the answer"]),
        ("d.jsonl", '{"query": "Q", "response": {"a": 1}}', ["row 1: response is an object"]),
        ("d.jsonl", '{"instruction": "Q", "input": "X"}', ["row 1: no answer"]),
        ("d.jsonl", '{"messages": []}', ["row 1: messages is empty", "expected a list of messages"]),
        ("d.jsonl", '{"messages": "hello"}', ["row 1: messages is text"]),
        (
            "d.jsonl",
            '{"messages": [{"role": "boss", "content": "x"}]}',
            ["row 1: messages[0] has the role 'boss'", "'assistant'"],
        ),
        ("d.jsonl", '{"messages": [{"content": "x"}]}', ["row 1: messages[0] is no message"]),
        (
            "d.jsonl",
            '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]}',
            ["messages[1] has no content"],
        ),
        (
            "d.jsonl",
            '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}',
            ["more <image> tags than images (0)"],
        ),
        ("d.jsonl", "", ["datasets[0] pvc://c/d.jsonl: there are no rows"]),
        ("d.jsonl", b"\xff\xfe{", ["cannot be read as .jsonl", "utf-8"]),
        ("d.json", '{\n"rows": []}', ["found an object; expected a list of objects", "or one object on each line"]),
        ("d.json", '\n{"query": "Q", "response": "A"}\n{"query": "Q"\n', ["row 3: no valid JSON"]),
        ("d.csv", "query,response\nQ,A\nQ,\n", ["row 3: response is empty"]),
        (
            "d.csv",
            "query,response\nQ,Well, A\n",
            ["row 2: it has 3 values under 2 names", "quotes around values with ','"],
        ),
        ("d.csv", 'query,response\nQ,"A\nQ,A\nQ,A\n', ["row 2: its quotes do not match"]),
        ("d.csv", 'query,response\nQ,A\nQ,"he "said", so"\n', ["row 3: its quotes do not match"]),
        ("d.jsonl", '{"query": "Q", "response": "A \\ud83d"}', ["row 1: it has half of a character (\\ud83d)"]),
        ("d.json", '[{"query": "Q", "response": ["\\ude00"]}]', ["row 1: it has half of a character (\\ude00)"]),
        ("d.jsonl", '{"query": "Q", "response": NaN}', ["row 1: response is a number", "expected text as the answer"]),
        ("d.parquet", "nope", ["cannot be read as .parquet"]),
        ("d.txt", "hello", ["unknown type of file '.txt'", ".jsonl, .ndjson, .json, .csv, .tsv, .parquet"]),
    ],
)
def test_a_bad_row_is_named_with_what_was_found_and_what_to_do(
    tmp_path: Path, name: str, text: str | bytes, parts: list[str]
) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path / name, text)
    for part in parts:
        assert part in str(caught.value)


def test_what_files_have_beside_rows_is_no_part_of_them(tmp_path: Path) -> None:
    """A mark of the byte order, lines' ends of Windows, empty lines, and separators after the last value."""
    csv = b"\xef\xbb\xbfquery,response\r\nQ,A,\r\n\r\nQ,A,,\r\n"
    lines = b'\xef\xbb\xbf{"query": "Q", "response": "A"}\r\n\r\n{"query": "Q", "response": "A \\ud83d\\ude00"}'
    assert [list(row.messages) for row in read(tmp_path / "d.csv", csv)] == [[USER, ASSISTANT]] * 2
    found = read(tmp_path / "d.jsonl", lines)
    assert [row.messages[1]["content"] for row in found] == ["A", "A \U0001f600"]


def test_a_missing_file_an_empty_folder_and_an_unmapped_column_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"datasets\[0\] pvc://c/no.jsonl: there is no file or folder"):
        read(tmp_path / "no.jsonl")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "README.md").write_text("x")
    with pytest.raises(DataError, match=r"no data files in the folder; found \['README.md'\]"):
        read(tmp_path / "folder")
    with pytest.raises(DataError, match=r"row 1: no column 'frage': .* as datasets\[0\].columns.query names it"):
        read(tmp_path / "d.jsonl", GOOD, columns={"query": "frage"})


def questions(rows: Sequence[Row]) -> list[str]:
    """The first message of each row."""
    return [row.messages[0]["content"] for row in rows]


def write_rows(path: Path, names: Iterable[str]) -> DatasetPlan:
    """A dataset of one row for each name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"query": name, "response": "A"}) + "\n" for name in names))
    return DatasetPlan(uri=f"pvc://c/{path.name}", path=str(path))


@pytest.mark.parametrize(("split", "sizes"), [(0.1, (2, 1)), (1, (1,)), (5, (5,))])
def test_what_is_kept_aside_is_not_learned_from(tmp_path: Path, split: float, sizes: tuple[int, ...]) -> None:
    sets = [
        write_rows(tmp_path / "a.jsonl", (f"a{i}" for i in range(20))),
        write_rows(tmp_path / "b.jsonl", (f"b{i}" for i in range(10))).model_copy(update={"sample": 30}),
    ]
    data = read_datasets(sets, "SFT", 3, ValidationPlan(split=split))
    kept, learned = questions(data.validation), questions(data.rows)
    assert len(kept) == sum(sizes)
    if split < 1:
        assert sum(name.startswith("a") for name in kept) == 2
    assert set(kept).isdisjoint(learned)
    assert set(kept) | set(learned) == {f"a{i}" for i in range(20)} | {f"b{i}" for i in range(10)}
    assert questions(read_datasets(sets, "SFT", 3, ValidationPlan(split=split)).validation) == kept


def test_a_split_leaves_something_to_learn_from(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", "xy")
    assert len(read_datasets([data], "SFT", 0, ValidationPlan(split=0.9)).rows) == 1
    with pytest.raises(DataError, match=r"spec\.validation\.split: 2 of 2 rows leave none"):
        read_datasets([data], "SFT", 0, ValidationPlan(split=2))


def test_the_cache_tells_validation_samples_apart(tmp_path: Path) -> None:
    """By the rows' key, under which their tokens are kept."""
    sets, cache = [write_rows(tmp_path / "a.jsonl", "ab")], Cache(tmp_path / "cache")
    keys = set()
    for sample in (None, 2, 4):
        own = write_rows(tmp_path / "own.jsonl", "uvwxyz").model_copy(update={"sample": sample})
        data = read_datasets(sets, "SFT", 0, ValidationPlan(datasets=[own]), cache)
        assert len(data.validation) == (sample or 6)
        assert isinstance(data.validation, Rows)
        keys.add(data.validation.key)
    assert len(keys) == 3


def test_validation_datasets_are_read_as_they_are(tmp_path: Path) -> None:
    for name in ("train/0", "validation/0", "test/0"):
        write_rows(tmp_path / f"repo/{name}.jsonl", [name])
    repo = DatasetPlan(uri="hf://org/repo", path=str(tmp_path / "repo"))
    own = write_rows(tmp_path / "own.jsonl", ["own", "other"])
    data = read_datasets([repo], "SFT", 0, ValidationPlan(datasets=[repo, own]))
    assert questions(data.rows) == ["train/0"]
    assert questions(data.validation) == ["validation/0", "own", "other"]
    assert [source.uri for source in data.sources] == [
        "hf://org/repo/train/0.jsonl", "hf://org/repo/validation/0.jsonl", "pvc://c/own.jsonl",
    ]  # fmt: skip
