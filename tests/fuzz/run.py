"""Guided by coverage: atheris (libFuzzer) chooses the bytes from which the unit tests' own hypothesis tests draw.

`make fuzz` gives each of them FUZZ_SECONDS. What falsifies a test is kept by hypothesis, so that pytest shows it.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

MODULES = ("unit.operator.test_fuzz", "unit.openai_api.test_fuzz", "unit.agent.test_fuzz", "unit.agent.test_checks")
LONGEST = 4096
"""Bytes that one example is drawn from."""


def properties(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """(name, test) of the module's own hypothesis tests."""
    for name, value in vars(module).items():
        if name.startswith("test_") and hasattr(value, "hypothesis"):
            yield name, value


def fuzz(module: str, name: str, seconds: str) -> None:
    """One test, in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=["tunesmith"]):
        loaded = importlib.import_module(module)
    test = getattr(loaded, name).hypothesis.fuzz_one_input
    # From the beginning of any length: of few bytes hypothesis can draw but the smallest examples.
    options = [f"-max_total_time={seconds}", f"-max_len={LONGEST}", "-len_control=0", "-print_final_stats=1"]
    with TemporaryDirectory() as folder:
        atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/"], test)
        atheris.Fuzz()


def main() -> None:
    """All of them, one after the other, each in a process of its own."""
    seconds = os.environ.get("FUZZ_SECONDS") or "60"
    if len(sys.argv) > 1:
        fuzz(*sys.argv[1:], seconds=seconds)
    tests = [(one, name) for one in MODULES for name, _ in properties(importlib.import_module(one))]
    failed = []
    for module, name in tests:
        command = [sys.executable, __file__, module, name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seen = [line for line in done.stderr.splitlines() if "cov:" in line or "number_of_executed_units" in line]
        print(f"{'failed' if done.returncode else 'ok':8}{name}", *seen[-2:], sep="\n    ", flush=True)
        if done.returncode:
            print(done.stdout[-4000:] or done.stderr[-4000:])
            failed.append(f"tests/{module.replace('.', '/')}.py::{name}")
    sys.exit(f"To see the examples: hack/run pytest {' '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
