"""`python -m tunesmith.fetching --uri U --to FOLDER [--secret FOLDER]`, an init container's command."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from tunesmith.fetching import PERMANENT, TRANSIENT, FetchError, fetch
from tunesmith.fetching.shared import fetch_shared
from tunesmith.training.report import Ending


def report(path: Path, error: FetchError, kind: str) -> None:
    """Say in the termination message why the container failed."""
    reason = "Internal" if error.code == TRANSIENT else "DataError" if kind == "dataset" else "ModelError"
    ending = Ending.model_validate({"reason": reason, "message": str(error)})
    path.write_bytes(ending.encode())


def say(line: str) -> None:
    """Tell what happens, at once."""
    print(line, flush=True)


def main() -> int:
    """Entry point. Exit codes are those of `tunesmith.fetching`."""
    parser = argparse.ArgumentParser(prog="python -m tunesmith.fetching", description="Fetch an artefact.")
    parser.add_argument(
        "--uri", required=True, help="hf://org/name@revision, ms://org/name, https://…#sha256=…, s3://bucket/path"
    )
    parser.add_argument("--to", required=True, type=Path, help="the folder to make; it must be an absolute path")
    parser.add_argument("--secret", type=Path, help="folder of the mounted Secret with the credentials")
    parser.add_argument(
        "--kind", choices=("auto", "model", "dataset"), default="auto", help="what hf:// or ms:// names"
    )
    parser.add_argument("--shared", action="store_true", help="other pods may fetch the same into the same place")
    parser.add_argument("--keep-days", type=float, default=14, help="with --shared: remove what was not used so long")
    parser.add_argument("--termination-log", type=Path, help="where to write why it failed, as JSON")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        if not options.to.is_absolute():
            raise FetchError(f"--to {options.to}: not an absolute path", PERMANENT)
        if options.shared:
            fetch_shared(options.uri, options.to, options.secret, options.kind, options.keep_days, say)
        else:
            fetch(options.uri, options.to, options.secret, options.kind, say)
    except FetchError as error:
        if options.termination_log:
            report(options.termination_log, error, options.kind)
        print(error, file=sys.stderr)
        return error.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
