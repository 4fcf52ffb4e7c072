"""A folder that many pods fetch into: one does, the others wait. What nobody uses any more is removed.

The layout is `<claim>/.tunesmith/<kind>/<NAME>`. Beside `NAME` lie `.NAME.lock`, which who fetches or removes it holds,
and `.NAME.used`, whose time says when a pod last used it. Locks are the kernel's (flock): the file server lets go of
them when their holder dies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tunesmith.fetching import PERMANENT, TRANSIENT, FetchError, Kind, Progress, fetch

POLL_SECONDS, SAY_SECONDS = 1.0, 60.0
DAY = 86400.0


def used(path: Path) -> Path:
    """The file whose time says when `path` was last used."""
    return path.with_name(f".{path.name}.used")


def mark(path: Path) -> None:
    """Say that `path` is in use. Raises OSError."""
    used(path).touch()


def fetch_shared(uri: str, to: Path, secret: Path | None, kind: Kind, keep_days: float, progress: Progress) -> Path:
    """As `fetch`, where other pods may do the same at the same time. Raises FetchError."""
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with _held(to, progress):
            mark(to)
            for folder in sorted(path for path in to.parent.parent.iterdir() if path.is_dir()):
                sweep(folder, keep_days, progress)
            return fetch(uri, to, secret, kind, progress)
    except OSError as error:
        raise FetchError(f"{uri}: {error}: is the volume of {to.parent} full or read-only?", TRANSIENT) from error


def sweep(folder: Path, keep_days: float, progress: Progress) -> None:
    """Remove what lies in `folder` and was not used for so long."""
    for note in sorted(folder.glob(".*.used")):
        path = note.with_name(note.name.removeprefix(".").removesuffix(".used"))
        if not _idle(note, keep_days):
            continue
        with _held(path, progress, wait=False) as lock:
            if not lock or not _idle(note, keep_days):
                continue
            progress(f"{path} was not used for {keep_days:g} days: removed")
            doomed = path.with_name(f".{path.name}.removed")
            with contextlib.suppress(FileNotFoundError):
                path.rename(doomed)  # at once: nobody finds half of it
            for gone in (doomed, path.with_name(f"{path.name}.partial")):
                shutil.rmtree(gone, ignore_errors=True)
            note.unlink(missing_ok=True)


def _idle(note: Path, keep_days: float) -> bool:
    try:
        return time.time() - note.stat().st_mtime > keep_days * DAY
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _held(path: Path, progress: Progress, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of `path`. Says whether it is held, which without `wait` it may not be."""
    file = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o664)
    try:
        yield _lock(file, path, progress, wait=wait)
    finally:
        os.close(file)


def _lock(file: int, path: Path, progress: Progress, *, wait: bool) -> bool:
    said = -SAY_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                return False
        except OSError as error:
            if error.errno not in {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}:
                raise
            raise FetchError(
                f"the volume of {path.parent} has no file locks ({error.strerror}), by which one pod fetches at a "
                "time: use a claim whose file system has them (NFS 4, CephFS, Lustre with -o flock)",
                PERMANENT,
            ) from None
        else:
            return True
        if time.monotonic() - said >= SAY_SECONDS:
            said = time.monotonic()
            progress(f"another pod fetches {path}: waiting for it")
        time.sleep(POLL_SECONDS)
