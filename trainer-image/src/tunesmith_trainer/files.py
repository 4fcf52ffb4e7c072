"""The files of a dataset -> rows of columns, as they stand there."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path, PurePath
from typing import IO, Any, Literal
from urllib.parse import urlsplit

from tunesmith.training.plan import DatasetPlan

from tunesmith_trainer.errors import DataError

Found = tuple[int, dict[str, Any] | DataError]
"""(number of the row, its columns, or what is wrong with it)"""
PACKED = (".gz", ".zst")
BOM = b"\xef\xbb\xbf"
HALF = re.compile(r"\\u[dD][89a-fA-F]")
"""JSON's name of half of a character, alone or beside the other half."""
NOT_DATA = {"dataset_info.json", "dataset_infos.json", "state.json", "manifest.json", "config.json"}
Split = Literal["train", "validation"]
SPLITS: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("validation", "val", "dev", "eval", "test")}
"""How the names of a folder's files or folders begin, the first choice first."""


def suffix_of(path: PurePath) -> tuple[str, str]:
    """(what it holds, how it is packed), by the name: `.jsonl`, `.gz`."""
    packed = path.suffix if path.suffix in PACKED else ""
    return PurePath(path.name.removesuffix(packed)).suffix, packed


def data_files(dataset: DatasetPlan, label: str, split: Split = "train") -> list[tuple[Path, str]]:
    """Files of a dataset and their addresses. Of a folder: those that `files`, the repository's card or the split name,
    else all of known types; where some lie under the name of the split, only those, so that nothing is learned from a
    test split.
    """
    root = Path(dataset.path)
    if root.is_file():
        return [(root, dataset.uri)]
    if not root.is_dir():
        raise DataError(f"{label} {dataset.uri}: there is no file or folder {root}. Check the address")
    splits = (dataset.split,) if dataset.split else SPLITS[split]
    patterns = dataset.files or declared(root, dataset, label, splits)
    candidates = sorted({path for one in patterns for path in root.glob(one)}) if patterns else sorted(root.rglob("*"))
    inside = root / dataset.subset if dataset.subset and not patterns else root
    paths = [
        path
        for path in candidates
        if path.is_file()
        and suffix_of(path)[0] in READERS
        and path.name not in NOT_DATA
        and path.is_relative_to(inside)
        and not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]
    if not paths:
        found = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())[:20]
        among = f" that fit {list(patterns)}" if patterns else f" in {dataset.subset}" if dataset.subset else ""
        raise DataError(
            f"{label} {dataset.uri}: no data files{among} in the folder; found {found}; "
            f"expected *{', *'.join(READERS)}, also with {' or '.join(PACKED)}"
        )
    if not patterns:
        paths = of_split(paths, inside, splits, f"{label} {dataset.uri}", must=dataset.split is not None)
    return [(path, f"{dataset.uri.rstrip('/')}/{path.relative_to(root).as_posix()}") for path in paths]


def of_split(paths: list[Path], root: Path, splits: tuple[str, ...], where: str, must: bool) -> list[Path]:
    """Those under the first name of `splits` that there is; all where there is none, unless there must be."""
    for name in splits:
        own = [path for path in paths if any(part.startswith(name) for part in path.relative_to(root).parts)]
        if own:
            return own
    if must:
        found = [path.relative_to(root).as_posix() for path in paths[:20]]
        raise DataError(f"{where}: no file under a name that begins with {splits[0]!r}; found {found}")
    return paths


def declared(root: Path, dataset: DatasetPlan, label: str, splits: tuple[str, ...]) -> list[str]:
    """Patterns of files that the card of a repository (README.md) declares for the subset and the split."""
    card = root / "README.md"
    head = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2) if card.is_file() else []
    if len(head) < 3 or head[0].strip():
        return []
    import yaml

    try:
        content = yaml.safe_load(head[1])
    except yaml.YAMLError:
        return []
    configs = [one for one in (content or {}).get("configs") or [] if one.get("data_files")]
    names = [str(one.get("config_name", "default")) for one in configs]
    chosen = [one for one, name in zip(configs, names, strict=True) if name == dataset.subset]
    if dataset.subset is None and configs:
        chosen = [one for one, name in zip(configs, names, strict=True) if one.get("default") or name == "default"]
        chosen = chosen or configs
        if len(chosen) > 1:
            raise DataError(f"{label} {dataset.uri}: it has the subsets {names}: set {label}.subset to one of them")
    if not chosen:
        if dataset.subset and not (root / dataset.subset).is_dir():
            raise DataError(
                f"{label}.subset: {dataset.subset!r} is none of {dataset.uri}'s: {names or 'none declared'}"
            )
        return []
    files = chosen[0]["data_files"]
    if isinstance(files, str) or all(isinstance(one, str) for one in files):
        return listed(files)
    by_split = {str(one.get("split")): listed(one.get("path")) for one in files}
    for name in splits:
        if name in by_split:
            return by_split[name]
    raise DataError(f"{label} {dataset.uri}: it has the splits {sorted(by_split)}: set {label}.split to one of them")


def listed(value: Any) -> list[str]:
    """One text or several, as a list."""
    return [value] if isinstance(value, str) else list(value)


def opened(path: Path, packed: str) -> IO[bytes]:
    """The bytes of a file, unpacked."""
    if packed == ".gz":
        return gzip.open(path)  # type: ignore[return-value]
    if packed == ".zst":
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return path.open("rb")


def json_lines(file: IO[bytes], where: str, begin: int = 1) -> Iterator[Found]:
    """One object on each line, of which the first that is left has the number `begin`."""
    with io.TextIOWrapper(file, encoding="utf-8-sig") as text:
        for number, line in enumerate(text, begin):
            if line.strip():
                yield number, json_object(line, f"{where} row {number}")


def json_list(file: IO[bytes], where: str) -> Iterator[Found]:
    """A list of objects, which is held whole; or, as many name them so, lines."""
    text = io.BufferedReader(file) if not isinstance(file, io.BufferedReader) else file  # type: ignore[type-var]
    head = text.peek(4096).removeprefix(BOM).lstrip()[:1]
    if head == b"{":
        begin, first = 1, text.readline()
        while not first.removeprefix(BOM).strip():
            begin, first = begin + 1, text.readline()
        try:
            json.loads(first)
        except ValueError:
            raise DataError(
                f"{where}: found an object; expected a list of objects, or one object on each line"
            ) from None
        yield begin, json_object(first.decode("utf-8-sig"), f"{where} row {begin}")
        yield from json_lines(text, where, begin + 1)
        return
    whole = text.read().decode("utf-8-sig")
    content, halves = json.loads(whole), bool(HALF.search(whole))
    if not isinstance(content, list):
        raise DataError(f"{where}: found {kind_of(content)}; expected a list of objects, or one object on each line")
    for number, value in enumerate(content, 1):
        yield number, as_object(value, f"{where} row {number}", halves)


def separated(separator: str) -> Callable[[IO[bytes], str], Iterator[Found]]:
    """Lines of values under a line of names. Where quotes do not match, rows would run into each other: such a file is
    refused, and a row with more values than names, as of a separator that no quotes protect.
    """

    def read(file: IO[bytes], where: str) -> Iterator[Found]:
        csv.field_size_limit(sys.maxsize)
        with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            reader = csv.DictReader(text, delimiter=separator, strict=True)
            begin = 2
            try:
                for line in reader:
                    number, begin = reader.line_num, reader.line_num + 1
                    if any(more := line.pop(None, None) or []):
                        yield (
                            number,
                            DataError(
                                f"{where} row {number}: it has {len(line) + len(more)} values under {len(line)} names; "
                                f"expected quotes around values with {separator!r} in them"
                            ),
                        )
                        continue
                    yield number, {name: value for name, value in line.items() if value is not None}
            except csv.Error as error:
                raise DataError(
                    f"{where} row {begin}: its quotes do not match: {error}; expected a value with quotes in it to be "
                    'quoted itself, and they doubled: "say ""so"""'
                ) from None

    return read


def parquet(file: IO[bytes], where: str) -> Iterator[Found]:
    """Row groups, a batch at a time."""
    from pyarrow.parquet import ParquetFile

    for batch in numbered(ParquetFile(file).iter_batches(batch_size=1000)):
        yield from batch


def arrow(file: IO[bytes], where: str) -> Iterator[Found]:
    """Arrow's IPC, as a file or as a stream, as `datasets` writes it."""
    import pyarrow

    magic = file.read(6)
    file.seek(0)
    if magic == b"ARROW1":
        source = pyarrow.ipc.open_file(file)
        batches = (source.get_batch(number) for number in range(source.num_record_batches))
    else:
        batches = iter(pyarrow.ipc.open_stream(file))
    for batch in numbered(batches):
        yield from batch


def numbered(batches: Iterator[Any]) -> Iterator[list[Found]]:
    """Batches of a table as rows."""
    number = 0
    for batch in batches:
        rows = batch.to_pylist()
        yield list(enumerate(rows, number + 1))
        number += len(rows)


READERS: dict[str, Callable[[IO[bytes], str], Iterator[Found]]] = {
    ".jsonl": json_lines,
    ".ndjson": json_lines,
    ".json": json_list,
    ".csv": separated(","),
    ".tsv": separated("\t"),
    ".parquet": parquet,
    ".arrow": arrow,
    ".ipc": arrow,
    ".feather": arrow,
}


def read_file(path: Path, where: str, uri: str) -> Generator[Found, None, None]:
    """The rows of a file, one by one. The number is the line, from 1, in JSONL and CSV, else the row."""
    suffix, packed = suffix_of(path)
    if suffix not in READERS:
        suffix, packed = suffix_of(PurePath(urlsplit(uri).path))
    if suffix not in READERS:
        raise DataError(f"{where}: unknown type of file {suffix or '(no suffix)'!r}; expected {', '.join(READERS)}")
    try:
        with opened(path, packed) as file:
            yield from READERS[suffix](file, where)
    except DataError:
        raise
    except (OSError, EOFError, ValueError, csv.Error) as error:  # Arrow's are ValueErrors
        raise DataError(f"{where}: cannot be read as {suffix}{packed}: {error}") from error


def json_object(line: str, where: str) -> dict[str, Any] | DataError:
    """The JSON object in `line`, or that it is none."""
    try:
        value = json.loads(line)
    except ValueError as error:
        return DataError(f"{where}: no valid JSON: {error}; expected one object on one line")
    return as_object(value, where, bool(HALF.search(line)))


def as_object(value: Any, where: str, halves: bool) -> dict[str, Any] | DataError:
    """An object of text that can be encoded, or that it is none. `halves`: it may name half of a character."""
    if not isinstance(value, dict):
        return DataError(f"{where}: found {kind_of(value)}; expected an object with columns")
    if not halves:
        return value
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return DataError(
            f"{where}: it has half of a character (\\u{ord(error.object[error.start]):04x}); expected both"
        )
    return value


def kind_of(value: object) -> str:
    """A word for the type of a JSON value."""
    words = {dict: "an object", list: "a list", str: "text", bool: "a boolean", int: "a number", float: "a number"}
    return words.get(type(value), "nothing" if value is None else type(value).__name__)
