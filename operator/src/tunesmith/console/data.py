"""A file of rows from the user's machine, as a ConfigMap that jobs read: `configmap://name/file`."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from tunesmith.client import Conflict, Invalid, answers
from tunesmith.kube.client import path_of
from tunesmith.kube.connection import Connection

Object = dict[str, Any]
Counted = tuple[int, tuple[str, ...]]
"""Rows, and the columns of the first. No row is kept: those of a wide and long table are far more than its file."""
MOST_BYTES = 1_000_000
"""What a ConfigMap holds, with room for its names."""
LINES, TABLES = (".jsonl", ".ndjson"), {".csv": ",", ".tsv": "\t"}
ENDINGS = (*LINES, ".json", *TABLES, ".parquet", ".arrow", ".ipc", ".feather")
PACKED = (".gz", ".zst")
"""What the trainer reads."""
LABELS = {"app.kubernetes.io/managed-by": "tunesmith-console"}
ELSEWHERE = "put it on a claim (pvc://), in a bucket (s3://) or a hub (hf://), and give its address"
MEND = "mend the file, and choose it again"


@dataclass(frozen=True)
class Upload:
    """A file that was looked at."""

    file: str
    """Its name, as a ConfigMap's key may be."""
    content: bytes
    rows: int | None = None
    columns: tuple[str, ...] = ()
    """Of the first row. Both are known of JSONL, CSV and TSV only."""

    @property
    def name(self) -> str:
        """Of the ConfigMap: with the content's digest, so that data which a job was made with never changes."""
        stem = re.sub(r"[^a-z0-9]+", "-", self.file.rpartition(".")[0].lower()).strip("-")[:40].rstrip("-")
        digest = hashlib.sha256(self.file.encode() + b"\0" + self.content).hexdigest()[:10]
        return f"{stem or 'data'}-{digest}"

    @property
    def uri(self) -> str:
        """Its address."""
        return f"configmap://{self.name}/{self.file}"

    def config_map(self) -> Object:
        """The object."""
        head = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": self.name, "labels": LABELS}}
        try:
            return {**head, "immutable": True, "data": {self.file: self.content.decode()}}
        except UnicodeDecodeError:
            return {**head, "immutable": True, "binaryData": {self.file: base64.b64encode(self.content).decode()}}


def look(name: str, content: bytes) -> Upload:
    """A file, by its name and content. Raises Invalid for what the trainer could not read."""
    file = re.sub(r"[^-._a-zA-Z0-9]+", "-", name)[-200:].lstrip(".-")
    packed = file.endswith(PACKED)
    ending = PurePath(file.rpartition(".")[0] if packed else file).suffix
    if ending not in ENDINGS:
        raise Invalid(
            f"{name}: this is no file of rows", f"expected {', '.join(ENDINGS)}, also with {' or '.join(PACKED)}"
        )
    if len(content) > MOST_BYTES:
        raise Invalid(f"{name} has {len(content)} bytes; a ConfigMap holds {MOST_BYTES}", ELSEWHERE)
    if not content.strip():
        raise Invalid(f"{name} is empty", "choose a file with rows")
    if packed or ending not in (*LINES, *TABLES):
        return Upload(file, content)
    rows, columns = _objects(name, content) if ending in LINES else _table(name, content, TABLES[ending])
    if not rows:
        raise Invalid(f"{name} has no rows", MEND)
    return Upload(file, content, rows, columns)


async def keep(connection: Connection, namespace: str, upload: Upload) -> None:
    """Make the ConfigMap, or find it there: the name says that it has this content. It changes nothing that is there.
    Raises Forbidden, and Conflict where one of this name has another content.
    """
    wanted = upload.config_map()
    query = {"fieldManager": "tunesmith-console", "fieldValidation": "Strict"}
    try:
        with answers.understood("ConfigMap", upload.name, namespace):
            await connection.call("POST", path_of("ConfigMap", namespace), wanted, query=query)
    except Conflict as error:
        with answers.understood("ConfigMap", upload.name, namespace):
            live = await connection.call("GET", path_of("ConfigMap", namespace, upload.name))
        if any(live.get(part) != wanted.get(part) for part in ("data", "binaryData")):
            what = f"there is a ConfigMap {upload.name} in {namespace} with another content"
            raise Conflict(what, "give the file another name") from error


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Invalid(f"{name}, line {line}: this is no UTF-8", MEND) from None


def _objects(name: str, content: bytes) -> Counted:
    rows, columns = 0, tuple[str, ...]()
    for number, line in enumerate(_text(name, content).split("\n"), 1):
        if not line.strip():
            continue
        why = ""
        try:
            found = json.loads(line)
        except json.JSONDecodeError as error:
            found, why = None, f" (column {error.colno}: {error.msg.removesuffix(' starting at')})"
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise Invalid(f"{name}, line {number}: expected one row, a JSON object{why}", MEND)
        if not rows:
            columns = tuple(found)
        rows += 1
    return rows, columns


def _table(name: str, content: bytes, separator: str) -> Counted:
    csv.field_size_limit(MOST_BYTES)
    lines = csv.reader(io.StringIO(_text(name, content), newline=""), delimiter=separator)
    header = next(lines, [])
    return sum(1 for line in lines if line), tuple(dict.fromkeys(header))
