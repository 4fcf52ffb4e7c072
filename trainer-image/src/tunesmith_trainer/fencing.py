"""Fencing: processes of an earlier attempt, on a node that was only unreachable, may not write once a later attempt
has begun. The file `attempt` in the run's checkpoint folder holds the number of the newest one.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tunesmith_trainer.errors import Superseded

FILE = "attempt"


class Fence:
    """Asks for an attempt whether it is still the newest."""

    def __init__(self, folder: Path, attempt: int) -> None:
        self.path, self.attempt = folder / FILE, attempt

    def newest(self) -> int:
        """The newest attempt that has begun; 0: none. The file is opened anew each time: NFS asks its server then."""
        try:
            return int(self.path.read_text())
        except FileNotFoundError:
            return 0

    def passes(self) -> bool:
        """Whether no later attempt has begun. An earlier one may have written its number after ours was: it is
        written again, and the earlier one sees that when it asks.
        """
        newest = self.newest()
        if newest < self.attempt:
            draft = self.path.with_name(f".{FILE}-{self.attempt}")
            with draft.open("w") as file:
                file.write(f"{self.attempt}\n")
                file.flush()
                os.fsync(file.fileno())
            draft.rename(self.path)
            newest = self.newest()
        return newest <= self.attempt

    def check(self, together: Callable[[Callable[[], bool]], bool]) -> None:
        """Raise Superseded, on all processes, where a later attempt has begun. `together` hands rank 0's answer to
        all.
        """
        if not together(self.passes):
            raise Superseded(
                f"attempt {self.attempt} was ended: attempt {self.newest()} has begun on {self.path.parent}. "
                "Nothing is to be done: the later one goes on from the newest checkpoint"
            )
