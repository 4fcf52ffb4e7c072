"""Room on disks, and a full one told in one message."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tunesmith_cluster.errors import ClusterError

_WORDS = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
_CODES = (errno.ENOSPC, errno.EDQUOT)


def existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    return next(each for each in (path, *path.parents) if each.exists())


def free(path: Path) -> int:
    """How many bytes can still be written on the disk of a path, which need not be there yet."""
    found = os.statvfs(existing(path))
    return found.f_bavail * found.f_frsize


def temporary() -> Path:
    """Where programs put temporary files. The module tempfile tries to write there, and a disk may be full."""
    return Path(os.environ.get("TMPDIR") or "/tmp")


def size(number: float) -> str:
    """3.1 GB, or 12 MB."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def is_blamed(text: str) -> bool:
    """Whether a program says that a disk was full."""
    return _WORDS.search(text) is not None


def full(candidates: Iterable[Path]) -> str:
    """The message of a full disk: that of the path which has least room of all."""
    path = min(candidates, key=free)
    # A disk of many small files can be full with room left.
    files = os.statvfs(existing(path))
    names = ", and no further file" if files.f_files and not files.f_favail else ""
    return (
        f"the disk of {path} is full ({size(free(path))} free{names}): make room there, or choose another disk by "
        "TUNESMITH_CACHE or TUNESMITH_CLUSTER_STATE, then run this again"
    )


@contextmanager
def told(*folders: Path) -> Iterator[None]:
    """Turn the OSError of a full disk into a ClusterError. `folders` are what is written to: not every error says."""
    try:
        yield
    except OSError as error:
        if error.errno not in _CODES and not is_blamed(str(error)):
            raise
        named = [Path(error.filename)] if isinstance(error.filename, str) else folders
        raise ClusterError(full(named)) from error
