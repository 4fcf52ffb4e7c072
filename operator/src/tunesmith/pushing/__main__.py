"""`python -m tunesmith.pushing --artifact FOLDER --uri U [--secret FOLDER]`: the command of a pushing pod."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from tunesmith.pushing import TRANSIENT, PushError, push
from tunesmith.training.report import Ending


def say(line: str) -> None:
    """Tell what happens, at once."""
    print(line, flush=True)


def main() -> int:
    """Entry point. Exit codes are those of `tunesmith.fetching`."""
    parser = argparse.ArgumentParser(prog="python -m tunesmith.pushing", description="Push an artefact.")
    parser.add_argument("--artifact", required=True, type=Path, help="its folder")
    parser.add_argument("--uri", required=True, help="hf://org/name@branch, ms://org/name, s3://bucket/prefix, oci://…")
    parser.add_argument("--secret", type=Path, help="folder of the mounted Secret with the credentials")
    parser.add_argument("--public", action="store_true", help="a repository that is made for it is public")
    parser.add_argument("--termination-log", type=Path, help="where to write how it ended, as JSON")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    code = 0
    try:
        ended = push(options.uri, options.artifact, options.secret, not options.public, say).model_dump_json(
            by_alias=True, exclude_none=True
        )
    except PushError as error:
        print(error, file=sys.stderr)
        code = error.code
        reason = "Internal" if code == TRANSIENT else "ConfigError"
        ended = Ending.model_validate({"reason": reason, "message": str(error)}).encode().decode()
    if options.termination_log:
        options.termination_log.write_text(ended)
    return code


if __name__ == "__main__":
    sys.exit(main())
