"""A plan's datasets -> the rows to learn from and those to evaluate on. What cannot be read is refused, or left out and
listed where the dataset is not strict.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.api.methods import MethodType
from tunesmith.training.plan import DatasetPlan, TrainPlan, ValidationPlan

from tunesmith_trainer.cache import Cache, Notes, cache_of, key_of
from tunesmith_trainer.data import Reader, Row, unfilled
from tunesmith_trainer.errors import DataError
from tunesmith_trainer.files import Split, data_files, read_file
from tunesmith_trainer.rows import BATCH, COLUMN, Rows, encode

if TYPE_CHECKING:
    from datasets import Dataset

STOPPING = {"FirstExhausted": "first_exhausted", "AllExhausted": "all_exhausted"}
LISTED = 10_000
"""Rows left out that are listed one by one."""


@dataclass(frozen=True)
class SourceFile:
    """A file that rows came from, for the artefact's manifest."""

    uri: str
    digest: str
    """Of its content; where that is streamed its size, `size:123`."""


@dataclass(frozen=True)
class Dropped:
    """A row that was left out, and why."""

    row: str
    reason: str


@dataclass(frozen=True)
class Data:
    """What a plan's datasets hold."""

    rows: Sequence[Row]
    """To learn from; none where they are streamed."""
    validation: Sequence[Row]
    """To evaluate on; empty where the plan keeps nothing aside."""
    sources: list[SourceFile]
    dropped: list[Dropped] = field(default_factory=list)


def read_plan(plan: TrainPlan) -> Data:
    """The data of a plan, by its cache. Of rows that are streamed their files alone."""
    if plan.training.streaming == "Enabled":
        streams = [
            SourceFile(uri, f"size:{path.stat().st_size}")
            for number, dataset in enumerate(plan.datasets)
            for path, uri in data_files(dataset, f"datasets[{number}]")
        ]
        found = read_datasets([], plan.method.type, plan.training.seed, plan.validation, cache_of(plan))
        return replace(found, sources=[*streams, *found.sources])
    return read_datasets(
        plan.datasets, plan.method.type, plan.training.seed, plan.validation, cache_of(plan),
        plan.training.stopping_strategy,
    )  # fmt: skip


def read_datasets(
    datasets: Sequence[DatasetPlan],
    method: MethodType,
    seed: int,
    validation: ValidationPlan | None = None,
    cache: Cache | None = None,
    stopping: str = "FirstExhausted",
) -> Data:
    """All rows of a plan's datasets. Raises DataError."""
    kept, cache, sources, dropped = validation or ValidationPlan(), cache or Cache(), [], []
    keys: list[str] = []

    def read(dataset: DatasetPlan, label: str, split: Split) -> Dataset:
        table, notes, files, key = read_dataset(Reader(label, dataset, method), split, cache)
        sources.extend(files)
        keys.append(key)
        dropped.extend(Dropped(*one) for one in notes["dropped"])
        report(label, dataset, table, notes)
        return table

    every = [read(dataset, f"datasets[{i}]", "train") for i, dataset in enumerate(datasets)]
    held = apart([len(table) for table in every], kept.split, seed)
    learned: list[Dataset] = []
    measured = [table.select(sorted(numbers)) for table, numbers in zip(every, held, strict=True) if numbers]
    for i, (dataset, table) in enumerate(zip(datasets, every, strict=True)):
        left = [number for number in range(len(table)) if number not in held[i]] if held[i] else range(len(table))
        learned.append(table.select(draw(left, dataset.sample, f"{seed}:{i}")))
    for i, dataset in enumerate(kept.datasets):
        table = read(dataset, f"validation.datasets[{i}]", "validation")
        measured.append(table.select(draw(range(len(table)), dataset.sample, f"{seed}:{i}")))
    drawn = [[(one.sample, one.weight) for one in some] for some in (datasets, kept.datasets)]
    key = key_of(keys, drawn, kept.split, seed, stopping)
    weights = [dataset.weight for dataset in datasets]
    return Data(
        Rows(mixed(learned, weights, stopping, seed), f"{key}-train") if learned else [],
        Rows(joined(measured), f"{key}-validation") if measured else [],
        list(dict.fromkeys(sources)),
        dropped,
    )  # fmt: skip


def read_dataset(reader: Reader, split: Split, cache: Cache) -> tuple[Dataset, Notes, list[SourceFile], str]:
    """(rows as a table, notes on what was left out, files, key) of one dataset."""
    dataset, label = reader.dataset, reader.label
    paths = data_files(dataset, label, split)
    sources = [SourceFile(uri, digest_of(path)) for path, uri in paths]
    how = dataset.model_dump(include={"columns", "variables", "strict"})
    files = [(one.uri, one.digest, str(path)) for one, (path, _) in zip(sources, paths, strict=True)]
    key = key_of("rows", files, label, reader.method, how)

    def rows(notes: Notes) -> Iterator[Row]:
        notes["dropped"], notes["left_out"] = [], 0
        for path, uri in paths:
            with closing(read_file(path, f"{label} {uri}", uri)) as found:
                for number, columns in found:
                    where = f"{label} {uri} row {number}"
                    try:
                        if isinstance(columns, DataError):
                            raise columns
                        yield reader.row(where, columns, path.parent)
                    except DataError as error:
                        if dataset.strict:
                            raise
                        notes["left_out"] += 1
                        if len(notes["dropped"]) < LISTED:
                            notes["dropped"].append((where, str(error)))

    def make(notes: Notes) -> Iterator[Any]:
        from pyarrow import array, record_batch, string

        found, forgotten = rows(notes), set()
        while batch := list(islice(found, BATCH)):
            forgotten |= set(unfilled(batch))
            notes["unfilled"] = sorted(forgotten)
            yield record_batch({COLUMN: array([encode(row) for row in batch], string())})
        if "unfilled" not in notes:
            raise DataError(f"{label} {dataset.uri}: there are no rows. Give a dataset with at least one row")

    table, notes = cache.table(key, make)
    return table, notes, sources, key


def report(label: str, dataset: DatasetPlan, table: Dataset, notes: Notes) -> None:
    """Say what is likely to surprise."""
    for name in notes["unfilled"]:
        print(f"{label} {dataset.uri}: rows hold {{{{{name}}}}}; to fill it set {label}.variables.{name}")
    if count := notes["left_out"]:
        print(
            f"{label} {dataset.uri}: {count} of {count + len(table)} rows left out, the first: {notes['dropped'][0][1]}"
        )


def write_dropped(run: Path, dropped: Sequence[Dropped]) -> None:
    """List in the run's folder what was left out."""
    path = run / "dropped.jsonl"
    path.unlink(missing_ok=True)  # of an earlier attempt
    if dropped:
        lines = (json.dumps({"row": one.row, "reason": one.reason}, ensure_ascii=False) for one in dropped)
        path.write_text("".join(f"{line}\n" for line in lines))


def digest_of(path: Path) -> str:
    """`sha256:` of a file's content."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def draw(rows: Sequence[int], sample: int | None, seed: str) -> Sequence[int]:
    """`sample` of the rows without repetition; where there are fewer, all of them as often as it takes."""
    if sample is None:
        return rows
    order = random.Random(seed)
    drawn: list[int] = []
    while len(drawn) < sample:
        drawn += order.sample(rows, min(len(rows), sample - len(drawn)))
    return drawn


def apart(counts: Sequence[int], split: float | None, seed: int) -> list[set[int]]:
    """The rows of each dataset that are kept aside: a part of each, or so many in all, drawn by the seed. Something is
    left to learn from.
    """
    held: list[set[int]] = [set() for _ in counts]
    if not split:
        return held
    if split < 1:
        for i, count in enumerate(counts):
            size = min(max(1, round(count * split)), count - 1)
            held[i] = set(random.Random(f"split:{seed}:{i}").sample(range(count), size))
        return held
    every = [(i, number) for i, count in enumerate(counts) for number in range(count)]
    if split >= len(every):
        raise DataError(f"spec.validation.split: {split:.0f} of {len(every)} rows leave none to learn from: use fewer")
    for i, number in random.Random(f"split:{seed}").sample(every, int(split)):
        held[i].add(number)
    return held


def joined(tables: Sequence[Dataset]) -> Dataset:
    """One table after the other."""
    from datasets import concatenate_datasets

    return tables[0] if len(tables) == 1 else concatenate_datasets(list(tables))


def mixed(tables: Sequence[Dataset], weights: Sequence[float | None], stopping: str, seed: int) -> Dataset:
    """Tables one after the other; or, where there are weights, drawn from by them."""
    if len(tables) == 1 or not any(weights):
        return joined(tables)
    from datasets import interleave_datasets

    given = [weight or 1.0 for weight in weights]
    shares: Any = [weight / sum(given) for weight in given]
    rule: Any = STOPPING[stopping]
    return interleave_datasets(list(tables), probabilities=shares, seed=seed, stopping_strategy=rule)
