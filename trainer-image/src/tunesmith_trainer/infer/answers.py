"""What an InferenceJob has answered so far: kept in the run's folder, and taken over by the next attempt.

    <run>/answers/<attempt>-<number>/inputs.json      what was asked, and of which model
    <run>/answers/<attempt>-<number>/results.jsonl    a line for each row that is answered, in their order

Each process writes to a folder of its own: one of an earlier attempt that is still there, on a node that was only
unreachable, cannot disturb a later one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

FOLDER, INPUTS, RESULTS = "answers", "inputs.json", "results.jsonl"


class Answers:
    """The file that this process writes results to, with those of earlier attempts in it."""

    def __init__(self, run: Path, attempt: int, inputs: dict[str, Any]) -> None:
        self.root, self.attempt, self.inputs = run / FOLDER, attempt, inputs
        self.path = Path()
        """Of results.jsonl, once they are taken over."""
        self.rows = 0
        """That are answered."""

    def take_over(self, total: int, unit: int | None) -> int:
        """Begin this attempt's file with what is answered of `total` rows. Returns their number: all, or a multiple of
        `unit`, the rows that are written at once (None: all), so that batches are the same as without an interruption.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        folders = [one for one in sorted(self.root.glob("[0-9]*-*")) if int(one.name.split("-")[0]) <= self.attempt]
        before = folders[-1] if folders else None
        if before and read_inputs(before) != self.inputs:
            print("the model or the data are not those of the attempt before: begins anew", flush=True)
        elif before:
            found = sum(1 for _ in whole_lines(before / RESULTS))
            self.rows = found if found >= total else found - found % (unit or total)
        attempt, number = map(int, before.name.split("-")) if before else (0, 0)
        own = number + 1 if attempt == self.attempt else 1
        draft = self.root / f".{self.attempt}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        (draft / INPUTS).write_text(json.dumps(self.inputs))
        with (draft / RESULTS).open("wb") as file:
            if before and self.rows:
                file.writelines(islice(whole_lines(before / RESULTS), self.rows))
        folder = self.root / f"{self.attempt:06}-{own:06}"
        draft.rename(folder)
        for one in folders:
            shutil.rmtree(one, ignore_errors=True)
        self.path = folder / RESULTS
        return self.rows

    def add(self, results: Sequence[dict[str, Any]]) -> None:
        """Keep the results of a batch."""
        with self.path.open("ab") as file:
            file.write("".join(map(line_of, results)).encode())
        self.rows += len(results)

    def results(self) -> Iterator[dict[str, Any]]:
        """All that is kept."""
        for line in whole_lines(self.path):
            yield json.loads(line)

    def copy_to(self, path: Path) -> None:
        """Put the file there, without a second copy where the file system can do that."""
        try:
            os.link(self.path, path)
        except OSError:
            shutil.copyfile(self.path, path)


def line_of(result: dict[str, Any]) -> str:
    """A result as a line of JSON. What a table's messages hold beside text, as times, becomes text."""
    return json.dumps(result, ensure_ascii=False, default=str) + "\n"


def read_inputs(folder: Path) -> Any:
    """What was asked; None where a lost node left no such file, or half of one."""
    try:
        return json.loads((folder / INPUTS).read_text())
    except (OSError, ValueError):
        return None


def whole_lines(path: Path) -> Iterator[bytes]:
    """The lines up to the first that is cut off, or is no JSON, as a killed process or a lost node leaves it."""
    with path.open("rb") as file:
        for line in file:
            try:
                json.loads(line)
            except ValueError:
                return
            if not line.endswith(b"\n"):
                return
            yield line
