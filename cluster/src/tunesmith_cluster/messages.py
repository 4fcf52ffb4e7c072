"""What all command lines here have in common: what the user can act on is shown without a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from tunesmith_cluster import disk
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.paths import Paths


@contextmanager
def shown() -> Iterator[None]:
    """End the program with the message of a ClusterError, or of a full disk."""
    paths = Paths.from_environment()
    try:
        with disk.told(paths.cache, paths.state, disk.temporary()):
            yield
    except ClusterError as error:
        Console(stderr=True, highlight=False).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        sys.exit(1)
