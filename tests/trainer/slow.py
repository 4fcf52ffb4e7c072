"""The trainer's program, whose second step takes long: `python -m trainer.slow`, as torchrun starts it."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from tunesmith_trainer.__main__ import main

SECONDS = 4
marker = Path(os.environ["SLOW_MARKER"])


def slow_down() -> None:
    """Sleep in the second step, and say so by a file."""
    from tunesmith_trainer.methods import supervised

    step = supervised.TRAINER.training_step

    def training_step(self: Any, *arguments: Any, **options: Any) -> Any:
        if self.state.global_step == 1:
            marker.touch()
            time.sleep(SECONDS)
        return step(self, *arguments, **options)

    supervised.TRAINER.training_step = training_step  # type: ignore[method-assign]


if __name__ == "__main__":
    if marker.name == "up":
        marker.touch()
    else:
        slow_down()
    sys.exit(main())
