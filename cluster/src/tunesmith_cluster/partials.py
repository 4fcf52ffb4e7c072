"""What is being made: beside its place, and moved there once it is whole.

Its name holds the process that makes it, so that a later run can tell what a killed one left.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NAME = re.compile(r".+\.partial-(\d+)(-\w{8})?")


@contextmanager
def folder(near: Path) -> Iterator[Path]:
    """A new folder beside `near`, which goes away at the end with all that is in it."""
    near.parent.mkdir(parents=True, exist_ok=True)
    sweep(near.parent)
    prefix = f"{near.name}.partial-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=near.parent, ignore_cleanup_errors=True) as made:
        yield Path(made)


@contextmanager
def made(target: Path) -> Iterator[Path]:
    """Where to make the folder `target`: it gets there if the block ends well, unless another process was faster."""
    with folder(target) as parent:
        draft = parent / target.name
        yield draft
        try:
            draft.rename(target)
        except OSError:
            if not target.is_dir():  # else the other's is just as good
                raise


def sweep(folder: Path) -> None:
    """Remove what processes that are gone were making in a folder."""
    for path in folder.glob("*.partial-*"):
        match = _NAME.fullmatch(path.name)
        if match and not Path("/proc", match[1]).exists():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
