"""Why a job cannot be carried out, as found before it began."""

from __future__ import annotations

from typing import Literal

Reason = Literal["DataError", "ModelError", "Internal"]
# The trainer's, see tunesmith_trainer.errors. Internal may go better the next time.
EXIT_CODES: dict[Reason, int] = {"DataError": 65, "ModelError": 66, "Internal": 70}


class Refusal(Exception):
    """The message names the address, what was found, and what to do."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason

    @property
    def exit_code(self) -> int:
        """The container's exit code."""
        return EXIT_CODES[self.reason]
