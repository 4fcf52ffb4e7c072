"""Uploads on a claim: the content under its digest, and a record of each upload beside it."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

from pydantic import BaseModel

from tunesmith.openai_api import rows
from tunesmith.openai_api.errors import no_such
from tunesmith.openai_api.rows import Form

DRAFT = ".upload-"
"""What names of files begin with while they are written."""


class Record(BaseModel):
    """One upload."""

    id: str
    filename: str
    bytes: int
    created_at: int
    digest: str
    """Of the content as it was uploaded."""
    data: str
    """Name of the file that jobs read, in the same folder."""
    form: Form
    rows: int

    @property
    def body(self) -> dict[str, object]:
        """OpenAI's object `file`."""
        return {
            "object": "file",
            "id": self.id,
            "bytes": self.bytes,
            "created_at": self.created_at,
            "filename": self.filename,
            "purpose": "fine-tune",
            "status": "processed",
            "status_details": None,
        }


class Files:
    """The folder. Whoever else mounts the claim sees whole files only: each is written aside and renamed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.records = folder, folder / "records"
        self.records.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(f"{DRAFT}*"):  # by a process that was killed; there is one at a time
            left.unlink(missing_ok=True)

    @contextmanager
    def upload(self) -> Iterator[IO[bytes]]:
        """A file to write what comes into, which is gone afterwards unless `keep` took it."""
        with NamedTemporaryFile(dir=self.folder, prefix=DRAFT, delete=False) as file:
            try:
                yield file
            finally:
                Path(file.name).unlink(missing_ok=True)

    def keep(self, file: IO[bytes], filename: str) -> Record:
        """Look at every row, and keep the file. Raises ApiRefusal."""
        file.flush()
        file.seek(0)
        hashed = hashlib.sha256()
        while chunk := file.read(2**20):
            hashed.update(chunk)
        digest = hashed.hexdigest()
        size = file.tell()
        file.seek(0)
        form, count = rows.check(file)
        data = f"{digest}.jsonl"
        if form == "preference":
            file.seek(0)
            lines = (json.dumps(rows.converted(row), ensure_ascii=False) + "\n" for _, row in rows.read(file))
            data = self._write(lines, ".jsonl")
        os.fsync(file.fileno())
        os.chmod(file.name, 0o644)
        os.replace(file.name, self.folder / f"{digest}.jsonl")
        record = Record(
            id=f"file-{secrets.token_hex(12)}",
            filename=filename,
            bytes=size,
            created_at=int(time.time()),
            digest=digest,
            data=data,
            form=form,
            rows=count,
        )
        name = self._write([record.model_dump_json()], ".json")
        os.replace(self.folder / name, self.records / f"{record.id}.json")
        return record

    def source(self, text: str) -> str:
        """Keep a Python file. Returns its name."""
        return self._write([text], ".py")

    def list(self) -> list[Record]:
        """All uploads, the newest first."""
        found = []
        for path in self.records.glob("file-*.json"):
            with suppress(FileNotFoundError):  # it has just been deleted
                found.append(Record.model_validate_json(path.read_text()))
        return sorted(found, key=lambda one: (-one.created_at, one.id))

    def get(self, id_: str, param: str = "id") -> Record:
        """One upload. Raises ApiRefusal."""
        path = self.records / f"{id_}.json"
        if not id_.startswith("file-") or not id_.replace("-", "").isalnum() or not path.exists():
            raise no_such("File object", id_, param)
        return Record.model_validate_json(path.read_text())

    def content(self, record: Record) -> Path:
        """Where the content is, as it was uploaded."""
        return self.folder / f"{record.digest}.jsonl"

    def delete(self, record: Record) -> None:
        """Forget an upload, and remove the content unless another upload has the same."""
        (self.records / f"{record.id}.json").unlink(missing_ok=True)
        others = self.list()
        used = {one.data for one in others} | {f"{one.digest}.jsonl" for one in others}
        for name in {record.data, f"{record.digest}.jsonl"} - used:
            (self.folder / name).unlink(missing_ok=True)

    def _write(self, parts: Iterable[str], ending: str) -> str:
        """Write a file under its digest. Returns its name."""
        hashed = hashlib.sha256()
        with self.upload() as file:
            for part in parts:
                data = part.encode()
                hashed.update(data)
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            name = f"{hashed.hexdigest()}{ending}"
            os.replace(file.name, self.folder / name)
        return name
