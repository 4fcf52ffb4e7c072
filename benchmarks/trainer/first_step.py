"""How long a training takes to its first step, with tokens of all rows made before (Cached) and when they are drawn
(Lazy), in turns. Rows are of the length of conversations. The losses of both are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import run as benchmark


def rows(path: Path, count: int) -> None:
    """Conversations of four turns and about 250 tokens."""
    draw = random.Random(1)
    texts = [benchmark.text(draw, draw.randint(10, 60)) for _ in range(500)]
    with path.open("w") as file:
        for _ in range(count):
            roles = ("user", "assistant") * 2
            file.write(json.dumps({"messages": [{"role": one, "content": draw.choice(texts)} for one in roles]}) + "\n")


def seconds(how: str, count: int, steps: int) -> tuple[float, list[float]]:
    """(seconds from the start to the line of the first step, losses)."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        benchmark.prepare(folder, 64, 2)
        rows(folder / "rows.jsonl", count)
        command, pattern = benchmark.ours(folder, "LoRA", steps)
        job: dict[str, Any] = json.loads((folder / "LoRA.json").read_text())
        job["spec"]["training"]["tokenization"] = how
        (folder / "LoRA.json").write_text(json.dumps(job))
        environment = {"HF_HUB_OFFLINE": "1", "TUNESMITH_PROGRESS_PORT": "0", "MPLBACKEND": "Agg"}
        began, first = time.monotonic(), 0.0
        with (folder / "output").open("w") as out:
            process = subprocess.Popen(
                command, env=os.environ | environment, stdout=out, stderr=subprocess.STDOUT, cwd=folder
            )
            while process.poll() is None:
                if not first and benchmark.lines(folder, pattern):
                    first = time.monotonic() - began
                time.sleep(0.01)
        if process.returncode:
            raise SystemExit((folder / "output").read_text()[-4000:])
        return first, [line["loss"] for line in benchmark.lines(folder, pattern)]


def main() -> None:
    """Rounds of both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    found: dict[str, list[float]] = {"Cached": [], "Lazy": []}
    losses: set[tuple[float, ...]] = set()
    for _ in range(given.rounds):
        for how, times in found.items():
            first, logged = seconds(how, given.rows, 3)
            times.append(first)
            losses.add(tuple(logged))
            print(f"{how}: {first:.1f} s to the first of {len(logged)} steps", flush=True)
    cached, lazy = (statistics.median(times) for times in found.values())
    print(f"{given.rows} rows: Cached {cached:.1f} s, Lazy {lazy:.1f} s, ratio {cached / lazy:.1f}")
    print(f"the losses are {'equal' if len(losses) == 1 else 'different'}; load {os.getloadavg()}")


if __name__ == "__main__":
    main()
