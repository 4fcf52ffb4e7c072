"""Files that are there as a whole or not at all, whenever whoever writes them is killed or the disk is full."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file beside its place, and move it there."""
    draft = path.with_name(f"{path.name}.tmp")
    draft.unlink(missing_ok=True)  # an earlier one may have another mode
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        error.filename = str(path)  # a full disk's does not say
        raise
