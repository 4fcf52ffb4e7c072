"""The command line: `tunesmith`, and `kubectl tunesmith`. Its packages are the extra `tunesmith[cli]`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run a command. Whatever a user can do wrong ends in one message and an exit code."""
    try:
        from tunesmith.cli.app import app
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed: pip install 'tunesmith[cli]'", file=sys.stderr)
        sys.exit(1)
    app()
