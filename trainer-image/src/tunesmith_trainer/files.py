"""The files of a dataset -> rows of columns, as they stand there."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from tunesmith.training.plan import DatasetPlan

from tunesmith_trainer.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
NOT_DATA = {"dataset_info.json", "dataset_infos.json", "state.json", "manifest.json", "config.json"}


Split = Literal["train", "validation"]
SPLITS: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("validation", "val", "dev", "eval", "test")}
"""How the names of a folder's files or folders begin, the first choice first."""


def data_files(dataset: DatasetPlan, label: str, split: Split = "train") -> list[tuple[Path, str]]:
    """Files of a dataset and their addresses. Of a folder: all of known types; where some lie under the name of the
    split, only those, so that nothing is learned from a test split.
    """
    root = Path(dataset.path)
    if root.is_file():
        return [(root, dataset.uri)]
    if not root.is_dir():
        raise DataError(f"{label} {dataset.uri}: there is no file or folder {root}. Check the address")
    paths = sorted(
        path
        for path in root.rglob("*")
        if path.is_file()
        and path.suffix in SUFFIXES
        and path.name not in NOT_DATA
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    )
    if not paths:
        found = sorted(path.name for path in root.iterdir())[:20]
        raise DataError(
            f"{label} {dataset.uri}: no data files in the folder; found {found}; expected *{', *'.join(SUFFIXES)}"
        )
    for name in SPLITS[split]:
        own = [path for path in paths if any(part.startswith(name) for part in path.relative_to(root).parts)]
        if own:
            paths = own
            break
    return [(path, f"{dataset.uri.rstrip('/')}/{path.relative_to(root).as_posix()}") for path in paths]


def read_file(path: Path, where: str, uri: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, columns) of each row of a file. The number is the line, from 1, in JSONL and CSV, else the row."""
    suffix = path.suffix if path.suffix in SUFFIXES else Path(urlsplit(uri).path).suffix
    try:
        match suffix:
            case ".jsonl" | ".ndjson":
                with path.open(encoding="utf-8-sig") as file:
                    for number, line in enumerate(file, 1):
                        if line.strip():
                            yield number, json_object(line, f"{where} row {number}")
            case ".json":
                content = json.loads(path.read_text(encoding="utf-8-sig"))
                if not isinstance(content, list):
                    raise DataError(
                        f"{where}: found {kind_of(content)}; expected a list of objects, or name the file .jsonl"
                    )
                for number, value in enumerate(content, 1):
                    if not isinstance(value, dict):
                        raise DataError(
                            f"{where} row {number}: found {kind_of(value)}; expected an object with columns"
                        )
                    yield number, value
            case ".csv":
                csv.field_size_limit(sys.maxsize)
                with path.open(encoding="utf-8-sig", newline="") as file:
                    reader = csv.DictReader(file)
                    for line in reader:
                        yield reader.line_num, {k: v for k, v in line.items() if k is not None and v is not None}
            case ".parquet":
                import pyarrow.parquet as parquet

                number = 0
                for batch in parquet.ParquetFile(path).iter_batches():
                    for value in batch.to_pylist():
                        number += 1
                        yield number, value
            case _:
                raise DataError(
                    f"{where}: unknown type of file {suffix or '(no suffix)'!r}; expected {', '.join(SUFFIXES)}"
                )
    except DataError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{where}: cannot be read as {suffix}: {error}") from error


def json_object(line: str, where: str) -> dict[str, Any]:
    """The JSON object in `line`."""
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: no valid JSON: {error}; expected one object on one line") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: found {kind_of(value)}; expected an object with columns")
    return value


def kind_of(value: object) -> str:
    """A word for the type of a JSON value."""
    words = {dict: "an object", list: "a list", str: "text", bool: "a boolean", int: "a number", float: "a number"}
    return words.get(type(value), "nothing" if value is None else type(value).__name__)
