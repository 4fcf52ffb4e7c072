"""Why a program failed that builds or downloads, by its own words."""

from __future__ import annotations

import re
from pathlib import Path

from tunesmith_cluster import disk

# As uv, pip, Go and apt-get say it.
_UNREACHABLE = re.compile(
    r"name resolution|dns error|no such host|failure resolving|could not resolve|network is unreachable|"
    r"no route to host|connection refused|connection reset|i/o timeout|timed out",
    re.IGNORECASE,
)


def of(output: str, folder: Path, source: str) -> str:
    """What was in the way of filling `folder` from `source`, and what to do; else where to look."""
    if disk.is_blamed(output):
        # Where it puts things first, such as its own cache.
        return disk.full([folder, Path.home(), disk.temporary()])
    if _UNREACHABLE.search(output):
        return (
            f"{source} cannot be reached: see that this machine has a network and finds names, and, behind a proxy, "
            "that HTTPS_PROXY is set; then run this again"
        )
    return "see the end of its output"
