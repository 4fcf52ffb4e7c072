"""`python -m tunesmith.inspecting --model URI --input URI… --termination-log PATH`, the command of a small pod.

It exits with 0 and an Inspection in the termination message, or with a trainer's exit code and an Ending.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from tunesmith.fetching import TRANSIENT, FetchError, credentials
from tunesmith.inspecting.files import open_files
from tunesmith.inspecting.model import inspect
from tunesmith.inspecting.refusal import Refusal
from tunesmith.inspecting.waiting import wait
from tunesmith.training.location import locate
from tunesmith.training.report import TERMINATION_BYTES, Ending, Inspection


def look(model: str, inputs: list[str], secret: Path | None, seconds: float) -> Inspection:
    """Wait for what is on claims, then look at the model. Raises Refusal."""
    wait(model, inputs, seconds)
    place = locate(model)
    if not place.fetch and not Path(place.path).is_dir():
        if place.claim is None:
            return Inspection(reason=f"{model} lies in the trainer's image, which is not looked into")
        raise Refusal("ModelError", f"model {model}: {place.path} is a file. The address must be a model's folder")
    try:
        files = open_files(model, credentials(secret))
        if files is None:
            return Inspection(reason=f"{model} is an archive, which is not looked into")
        return inspect(model, files)
    except FetchError as error:
        raise Refusal("Internal" if error.code == TRANSIENT else "ModelError", f"model {model}: {error}") from None
    except OSError as error:
        raise Refusal("Internal", f"model {model}: {error}: can the volume be read?") from error


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m tunesmith.inspecting", description="Look at a job's inputs.")
    parser.add_argument("--model", required=True, help="address of the model")
    parser.add_argument("--input", action="append", default=[], help="address of a dataset; any number of times")
    parser.add_argument("--secret", type=Path, help="folder of the mounted Secret with the model's credentials")
    parser.add_argument("--wait", type=float, default=600, metavar="SECONDS", help="how long claims are waited for")
    parser.add_argument("--termination-log", required=True, type=Path, help="where to write the outcome, as JSON")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        found = look(options.model, options.input, options.secret, options.wait)
    except Refusal as refusal:
        options.termination_log.write_bytes(Ending(reason=refusal.reason, message=str(refusal)).encode())
        print(f"{refusal.reason}: {refusal}", file=sys.stderr)
        return refusal.exit_code
    message = found.model_dump_json(by_alias=True, exclude_none=True).encode()
    if len(message) > TERMINATION_BYTES:
        raise ValueError(f"{len(message)} bytes of facts do not fit a termination message")
    options.termination_log.write_bytes(message)
    print(f"{options.model}: {found.facts.parameters} parameters" if found.facts else found.reason)
    return 0


if __name__ == "__main__":
    sys.exit(main())
