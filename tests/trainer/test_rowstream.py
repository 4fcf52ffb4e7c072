"""Rows that are streamed: each once in an epoch, whoever reads; the same after a kill; in little memory."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainer import bounded, processes
from trainer.support import ROWS, artifact_path, long, losses
from trainer.test_resume import TUNERS, act_after, log
from tunesmith.training.plan import DatasetPlan, TrainPlan
from tunesmith_trainer.cursor import Cursor, File, Place, Share
from tunesmith_trainer.data import Reader, Row
from tunesmith_trainer.errors import DataError
from tunesmith_trainer.local.planning import plan_for, read
from tunesmith_trainer.rowstream import MARK, RowStream
from tunesmith_trainer.train import train

pytestmark = pytest.mark.trainer

Make = Callable[..., TrainPlan]
TEXTS = [{"text": row["response"] * (1 + place % 3)} for place, row in enumerate(ROWS * 6)]


def shards(folder: Path, counts: Sequence[int]) -> list[File]:
    """Files of so many rows each, which are numbered through."""
    dataset = DatasetPlan(uri=f"file://{folder}", path=str(folder))
    files, number = [], 0
    for place, count in enumerate(counts):
        path = folder / f"part-{place:03}.jsonl"
        path.write_text("".join(json.dumps({"text": str(number + one)}) + "\n" for one in range(count)))
        files.append(File(path, path.name, Reader("datasets[0]", dataset, "PreTraining")))
        number += count
    return files


@settings(max_examples=40)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=8), st.integers(1, 6), st.integers(1, 9), st.integers(0, 99))
def test_each_row_is_read_once_in_an_epoch_by_any_number_of_processes(
    counts: list[int], parts: int, taken: int, seed: int
) -> None:
    """Whole files where their number can be divided, else rows in turn: then each has as many, but for one."""
    with TemporaryDirectory() as folder:
        files = shards(Path(folder), counts)
        shares = [Share(files, str(seed), part, parts) for part in range(parts)]
        wanted = [sum(counts[part::parts]) for part in range(parts)]
        if not shares[0].by_file:
            wanted = [len(range(part, sum(counts), parts)) for part in range(parts)]
        epochs: tuple[list[str], list[str]] = ([], [])
        for share, count in zip(shares, wanted, strict=True):
            cursor = Cursor(share, Place(), pytest.fail)
            if not count:
                with pytest.raises(
                    DataError, match=f"part {share.part + 1} of {parts} of its {len(files)} files has no"
                ):
                    cursor.take(taken)
                continue
            for found in epochs:
                found += [row.text for row in take(cursor, count, taken)]
        for found in epochs:
            assert sorted(map(int, found)) == list(range(sum(counts)))


def take(cursor: Cursor, count: int, most: int) -> list[Row]:
    """So many rows, `most` at a time at most."""
    rows: list[Row] = []
    while len(rows) < count:
        rows += cursor.take(min(most, count - len(rows)))
    return rows


@settings(max_examples=40)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(1, 3), st.integers(0, 40), st.integers(1, 9))
def test_a_reader_goes_on_from_where_another_stood(counts: list[int], parts: int, before: int, taken: int) -> None:
    with TemporaryDirectory() as folder:
        share = Share(shards(Path(folder), [parts, *counts]), "7", parts - 1, parts)
        if share.by_file and not sum([parts, *counts][parts - 1 :: parts]):
            return
        first = Cursor(share, Place(), pytest.fail)
        take(first, before, taken) if before else None
        second = Cursor(share, first.at, pytest.fail)
        assert [row.text for row in take(first, 30, 4)] == [row.text for row in take(second, 30, 5)]


def test_epochs_and_their_files_are_shuffled(tmp_path: Path) -> None:
    cursor = Cursor(Share(shards(tmp_path, [10] * 8), "1"), Place(), pytest.fail)
    first, second = ([int(row.text) for row in take(cursor, 80, 80)] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(80))
    assert len({tuple(first), tuple(second), tuple(range(80))}) == 3


def streaming(plan: TrainPlan, **changed: Any) -> TrainPlan:
    """A plan whose rows are streamed."""
    training = {"streaming": "Enabled", "shuffle_buffer_size": 5, **changed}
    return plan.model_copy(update={"training": plan.training.model_copy(update=training)})


def numbered(rows: Sequence[Row]) -> list[list[dict[str, Any]]]:
    """Of each row as many examples as its number says: none, one or two."""
    return [[{"text": row.text}] * (int(row.text) % 3) for row in rows]


@settings(max_examples=25)
@given(st.integers(0, 11), st.sampled_from([1, 2, 3, 4, 6, 12]), st.sampled_from([1, 2, 3, 4]))
def test_any_number_of_processes_goes_on_with_the_same_examples(step: int, world: int, micro: int) -> None:
    """A run of three processes with micro-batches of two is stopped after a step; then others go on."""
    if 12 % (world * micro):
        return
    with TemporaryDirectory() as name:
        folder = Path(name)
        shards(folder, [9, 4, 11, 2])
        plan = TrainPlan.model_validate(plan_over(folder, processes=3, micro=2))
        whole, begun, after = (RowStream(plan, ["text"], numbered) for _ in range(3))
        expected = [whole.example(number)["text"] for number in range(12 * 12)]
        marks = []
        for rank in range(3):
            own = [n for n in range(12 * step) if n // 2 % 3 == rank]
            marks += [one[MARK] for one in begun.__getitems__(own)[-1:]]
        after.go_on(json.loads(json.dumps(begun.state(marks))))
        found = {}
        for rank in range(world):
            own = [n for n in range(12 * step, 12 * 12) if n // micro % world == rank]
            after.close()  # another process
            found |= dict(zip(own, after.__getitems__(own), strict=True))
        assert [found[number]["text"] for number in range(12 * step, 12 * 12)] == expected[12 * step :]


def plan_over(folder: Path, processes: int, micro: int, weights: Sequence[float | None] = (None,)) -> dict[str, Any]:
    """A plan of 12 steps over the datasets of a folder."""
    from trainer.support import make_plan

    plan = make_plan(folder, folder, run="x", processes=processes, global_batch_size=12, micro_batch_size=micro,
                     max_steps=12, method={"type": "PreTraining"})  # fmt: skip
    (folder / "x.jsonl").unlink()
    paths = [folder] if len(weights) == 1 else [folder / str(place) for place in range(len(weights))]
    datasets = [
        {"uri": f"file://{path}", "path": str(path), "weight": weight}
        for path, weight in zip(paths, weights, strict=True)
    ]
    return streaming(plan).model_dump() | {"datasets": datasets}


def test_datasets_are_mixed_by_their_weights_and_the_shorter_one_repeats(tmp_path: Path) -> None:
    for place, count in enumerate((40, 6)):
        (tmp_path / str(place)).mkdir()
        shards(tmp_path / str(place), [count])
        for path in (tmp_path / str(place)).glob("*.jsonl"):
            path.write_text(path.read_text().replace('"text": "', f'"text": "{place}:'))
    plan = TrainPlan.model_validate(plan_over(tmp_path, 1, 2, (3.0, 1.0)))
    plan = streaming(plan, max_steps=400)
    stream = RowStream(plan, ["text"], lambda rows: [[{"text": row.text}] for row in rows])
    texts = [stream.example(number)["text"] for number in range(12 * 400)]
    counts = Counter(text[0] for text in texts)
    assert counts["0"] / len(texts) == pytest.approx(0.75, abs=0.02)
    for place, rows in (("0", 40), ("1", 6)):  # each row as often as the others of its dataset, but for one
        often = Counter(text for text in texts if text[0] == place)
        assert len(often) == rows
        assert max(often.values()) - min(often.values()) <= 2


def test_a_streams_training_learns_from_each_row_once_in_an_epoch(make_plan: Make, tmp_path: Path) -> None:
    """With a window as large as the data, one step of all rows is the step of any order of them."""
    options: dict[str, Any] = {"rows": TEXTS, "method": {"type": "PreTraining"}, "global_batch_size": 24,
                               "micro_batch_size": 24, "max_steps": 3}  # fmt: skip
    table = make_plan(run="table", **options)
    stream = streaming(make_plan(run="stream", **options), shuffle_buffer_size=100)
    train(table)
    train(stream)
    assert losses(stream) == pytest.approx(losses(table), rel=1e-6)


def in_shards(make_plan: Make, folder: Path, files: int, run: str, **options: Any) -> TrainPlan:
    """A plan of seven steps over so many files, with checkpoints."""
    name = options.pop("name")
    data = folder / "shards"
    data.mkdir(exist_ok=True)
    rows = TEXTS if name == "PreTraining" else ROWS * 6
    for place in range(files):
        (data / f"{place}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[place::files]))
    plan = make_plan(run=run, method={"type": name}, max_steps=7, max_length=32,
                     checkpoint={"every_steps": 2, "keep": 2}, **options)  # fmt: skip
    dataset = DatasetPlan(uri="pvc://data/shards", path=str(data))
    return streaming(plan.model_copy(update={"datasets": [dataset]}))


@pytest.mark.parametrize(("name", "packing", "files"), [("PreTraining", True, 2), *long(("SFT", False, 3))])
def test_a_killed_run_goes_on_exactly(make_plan: Make, tmp_path: Path, name: str, packing: bool, files: int) -> None:
    """Of two processes that read whole files, or rows in turn: the losses and weights of the undisturbed run."""
    options = {"name": name, "packing": packing, "tuner": TUNERS["LoRA"], "processes": 2, "micro_batch_size": 1}
    whole, broken = (in_shards(make_plan, tmp_path, files, run, **options) for run in ("whole", "broken"))
    [expected, _] = processes.run(whole, tmp_path)
    processes.wait(processes.start(broken, tmp_path, act_after, (5, "1", signal.SIGKILL)))
    [found, _] = processes.run(broken.model_copy(update={"attempt": 2}), tmp_path)
    assert "resuming from checkpoint-4" in found.output()
    assert log(broken) == log(whole)
    assert len(log(whole)) == 7
    digests = [e.artifact.digest for e in (expected.ending(), found.ending()) if e and e.artifact]
    assert len(digests) == 2
    assert digests[0] == digests[1]


def test_another_number_of_processes_and_smaller_micro_batches_go_on_with_the_same_rows(
    make_plan: Make, tmp_path: Path
) -> None:
    options = {"name": "PreTraining", "packing": True, "tuner": TUNERS["LoRA"] | {"dropout": 0.0}}
    whole, first = (
        in_shards(make_plan, tmp_path, 2, run, processes=2, micro_batch_size=2, **options) for run in ("whole", "moved")
    )
    processes.run(whole, tmp_path)
    processes.wait(processes.start(first, tmp_path, act_after, (3, "0", signal.SIGTERM)))
    second = in_shards(make_plan, tmp_path, 2, "moved", processes=1, micro_batch_size=1, **options)
    [again] = processes.run(second.model_copy(update={"attempt": 2}), tmp_path)
    assert "resuming from checkpoint-3" in again.output()
    assert losses(second) == pytest.approx(losses(whole), rel=3e-5)
    assert len(losses(second)) == 7


def test_a_bad_row_is_named_or_left_out_and_counted(make_plan: Make, tmp_path: Path) -> None:
    plan = streaming(make_plan(rows=ROWS, max_steps=2))
    path = Path(plan.datasets[0].path)
    path.write_text(path.read_text() + '{"query": "q"}\n{"query": \n')
    with pytest.raises(DataError, match=r"datasets\[0\] configmap://data/run.jsonl row 5: no answer"):
        train(plan)
    lenient = plan.model_copy(update={"datasets": [plan.datasets[0].model_copy(update={"strict": False})]})
    ending = train(lenient)
    assert "4 rows left out, as they could not be read" in ending.message


def test_a_file_that_ends_early_is_named(make_plan: Make, tmp_path: Path) -> None:
    plan = streaming(make_plan(rows=ROWS * 100, max_steps=2))
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(Path(plan.datasets[0].path).read_bytes())[:-40])
    plan = plan.model_copy(update={"datasets": [DatasetPlan(uri="pvc://data/cut.jsonl.gz", path=str(path))]})
    with pytest.raises(DataError, match=r"datasets\[0\] pvc://data/cut.jsonl.gz: cannot be read as .jsonl.gz: .*ended"):
        train(streaming(plan, shuffle_buffer_size=1000))


def test_files_that_are_away_for_a_while_are_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [file] = shards(tmp_path, [5])
    cursor = Cursor(Share([file], "1"), Place(), pytest.fail)
    first = [row.text for row in cursor.take(5)]
    file.path.rename(tmp_path / "away")
    threading.Timer(0.5, lambda: (tmp_path / "away").rename(file.path)).start()
    assert [row.text for row in cursor.take(5)] == first
    assert "No such file" in capsys.readouterr().out


@pytest.mark.long
def test_the_example_of_the_documentation_trains(tiny: Path, tmp_path: Path) -> None:
    store = tmp_path / "tunesmith-store"
    shutil.copytree(tiny, store / "base" / "smollm2-135m-instruct")
    for name in ("web", "code"):
        (store / "corpus" / name).mkdir(parents=True)
        for place in (0, 1):
            path = store / "corpus" / name / f"{place}.jsonl"
            path.write_text("".join(json.dumps({"text": f"{name} {row['response']}"}) + "\n" for row in ROWS))
    job = read([Path(__file__).parents[2] / "examples" / "streaming.yaml"])
    job.resource["spec"]["training"] |= {"maxSteps": 2, "maxLength": 64}
    plan, _ = plan_for(job, tmp_path)
    ending = train(plan)
    manifest = json.loads((artifact_path(plan, ending) / "manifest.json").read_text())
    assert [one["uri"].rpartition("/corpus/")[2] for one in manifest["data"]] == [
        "web/0.jsonl", "web/1.jsonl", "code/0.jsonl", "code/1.jsonl"
    ]  # fmt: skip
    assert all(one["digest"].startswith("size:") for one in manifest["data"])


@pytest.mark.long
def test_a_stream_may_be_larger_than_the_memory(make_plan: Make, tmp_path: Path, tokenizer: Any) -> None:
    """Two epochs of tokens that take three times the memory that there is; with a window of all of them it fails."""
    names, memory, count = {}, 16 * 2**20, 48_000
    for run, rows, window in (("small", 1000, 256), ("large", count, 1000), ("wide", count, count)):
        plan = make_plan(run=run, rows=[{"text": f"{number:07}" * 24} for number in range(rows)], max_length=256,
                         method={"type": "PreTraining"}, global_batch_size=1000, micro_batch_size=1000,
                         max_steps=2 * rows // 1000)  # fmt: skip
        names[run] = tmp_path / f"{run}.json"
        names[run].write_text(streaming(plan, shuffle_buffer_size=window).model_dump_json())
    found, wide = (
        subprocess.run(
            [sys.executable, bounded.__file__, str(names["small"]), str(names[run]), str(memory), "streamed"],
            capture_output=True,
            text=True,
            timeout=300,
            env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
        )
        for run in ("large", "wide")
    )
    assert found.returncode == 0, found.stderr
    texts = [f"{number:07}" * 24 for number in range(count)]
    tokens = sum(len(ids) + 1 for ids in tokenizer(texts)["input_ids"])
    assert int(found.stdout.split()[-1]) == 2 * tokens
    assert 2 * 8 * tokens > 3 * memory, "ids and labels, as lists"
    assert wide.returncode != 0
    assert "memory" in wide.stderr.lower() or "alloc" in wide.stderr.lower(), wide.stderr
    assert not (tmp_path / "store" / "cache").exists()
