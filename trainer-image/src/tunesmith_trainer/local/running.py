"""Runs a plan's processes on this machine, follows them, and ends them."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

from pydantic import ValidationError
from tunesmith.api.base import Artifact
from tunesmith.training.plan import TrainPlan
from tunesmith.training.report import Ending, Report

from tunesmith_trainer.errors import BY_REASON, InternalError
from tunesmith_trainer.local.planning import Given, plan_for, read
from tunesmith_trainer.local.showing import Quiet, Shown

POLL_SECONDS = 0.3
GRACE_SECONDS = 110
"""Time for a checkpoint after Ctrl-C, where torchrun would kill its processes after 30 s."""


@dataclass(frozen=True)
class Outcome:
    """What a run made."""

    artifact: Artifact
    path: Path
    """The artefact's folder."""
    run: Path
    """The run's folder: plan, logs, curves, checkpoints."""
    log: list[dict[str, Any]]
    """The lines of logging.jsonl."""


def run(
    spec: Given,
    *,
    name: str | None = None,
    claims: str | Path = ".",
    from_scratch: bool = False,
    show: bool = False,
) -> Outcome:
    """Train as a FineTuneJob says: its file or files, the resource, or its spec alone.

    `name` chooses one of several jobs. `claims` is the folder in which a folder stands for each claim: what
    is made goes to its tunesmith-store. A run that was interrupted goes on, unless `from_scratch`. With `show` it is
    followed on the terminal. Raises TrainerError; Ctrl-C makes a checkpoint and raises Interrupted.
    """
    plan, choice = plan_for(read(spec, name), Path(claims).resolve())
    if from_scratch:
        shutil.rmtree(plan.checkpoint.path, ignore_errors=True)
        shutil.rmtree(plan.output.run, ignore_errors=True)
        plan = plan.model_copy(update={"attempt": 1})
    shown = Shown() if show else Quiet()
    if choice:
        shown.say(choice.status.summary)
    return execute(plan, shown)


def execute(plan: TrainPlan, shown: Quiet) -> Outcome:
    """Run the plan's processes to their end."""
    run_folder = Path(plan.output.run)
    run_folder.mkdir(parents=True, exist_ok=True)
    path, message = run_folder / "plan.json", run_folder / "ending.json"
    path.write_text(plan.model_dump_json(by_alias=True, indent=2) + "\n")
    message.unlink(missing_ok=True)
    port = free_port()
    environment = {
        **os.environ,
        "TUNESMITH_TERMINATION_LOG": str(message),
        "TUNESMITH_PROGRESS_PORT": str(port),
        "TUNESMITH_INPUT_WAIT_SECONDS": "0",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(GRACE_SECONDS),
        "PYTHONUNBUFFERED": "1",
    }
    launcher = [sys.executable]
    if plan.world_size > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={plan.processes_per_node}"]
    # A session of its own: Ctrl-C of a terminal reaches this process alone, which passes it on in its own way.
    process = subprocess.Popen(
        [*launcher, "-m", "tunesmith_trainer", "train", "--plan", str(path)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        start_new_session=True,
    )  # fmt: skip
    reader = Thread(target=copy, args=(process, run_folder / "output.log", shown), daemon=True)
    reader.start()
    with shown:
        try:
            follow(process, port, shown)
        finally:
            if process.poll() is None:  # an error of our own, or a second Ctrl-C
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            reader.join()
    return outcome(plan, message, process.returncode)


def follow(process: subprocess.Popen[str], port: int, shown: Quiet) -> None:
    """Return when the processes have ended. Ctrl-C is passed on as SIGTERM, once."""
    while process.poll() is None:
        try:
            shown.update(asked(port))
            time.sleep(POLL_SECONDS)
        except KeyboardInterrupt:
            if shown.stopping:
                raise
            shown.stopping = True
            shown.say("Ctrl-C: a checkpoint is made after this step. Once more ends it at once")
            process.send_signal(signal.SIGTERM)


def asked(port: int) -> Report | None:
    """The progress; None while none is served."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/progress")
        return Report.model_validate_json(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValidationError):
        return None
    finally:
        connection.close()


def copy(process: subprocess.Popen[str], path: Path, shown: Quiet) -> None:
    """Keep and show what the processes print."""
    assert process.stdout
    with process.stdout, path.open("a") as file:
        for line in process.stdout:
            file.write(line)
            file.flush()
            shown.line(line.rstrip("\n"))


def outcome(plan: TrainPlan, message: Path, code: int) -> Outcome:
    """What the processes left. Raises the failure that they told."""
    output = Path(plan.output.run) / "output.log"
    try:
        ending = Ending.model_validate_json(message.read_bytes())
    except (OSError, ValidationError):
        raise InternalError(f"it ended with code {code} and without a word; its last lines are in {output}") from None
    if ending.reason != "Completed" or ending.artifact is None:
        failure = BY_REASON.get(ending.reason, InternalError)(ending.message or f"see {output}")
        failure.step, failure.checkpoint_step = ending.step, ending.checkpoint_step
        raise failure
    log = Path(plan.output.run, "logging.jsonl").read_text().splitlines()
    return Outcome(
        artifact=ending.artifact,
        path=Path(plan.output.path, ending.artifact.kind, ending.artifact.digest.removeprefix("sha256:")),
        run=Path(plan.output.run),
        log=[json.loads(line) for line in log],
    )


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])
