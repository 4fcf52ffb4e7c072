"""A real vLLM by the operator's own arguments, without an agent."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serving.conftest import ENGINE_START, Process, call, free_port, until
from tunesmith.agent.__main__ import install_guard
from tunesmith.api.modeldeployment import ModelDeploymentSpec
from tunesmith.children.serving import server_arguments
from tunesmith.serving.contract import PLUGIN, State


@dataclass(frozen=True)
class Engine:
    """One that was started."""

    url: str
    last_words: Path
    """What stands for the file that the kubelet reads when a container has ended."""
    log: Path
    code: int | None
    """How it ended, if it did before it answered."""


@contextmanager
def started(folder: Path, root: Path, **environment: str) -> Iterator[Engine]:
    """Until it answers or ends."""
    port, words = free_port(), root / "termination-log"
    install_guard(root / "guard")
    words.touch()
    spec = ModelDeploymentSpec.model_validate({"model": {"uri": "file:///m"}, "engine": {"dtype": "Float32"}})
    state = State(revision=1, model_name="base", model_path=str(folder), max_lora_rank=8, max_loras=1, max_cpu_loras=1)
    arguments = [a for a in server_arguments(spec, state) if not a.startswith("--port")]
    variables = {
        "PATH": os.environ["PATH"],
        "HOME": str(root),
        "PYTHONPATH": str(root / "guard"),
        "TUNESMITH_TERMINATION_LOG": str(words),
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_PLUGINS": PLUGIN,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments, f"--port={port}"]
    process = Process([*command, "--enforce-eager"], variables | environment, root / "engine.log")
    process.start()
    child, url = process.child, f"http://127.0.0.1:{port}"
    assert child
    try:
        until(lambda: call("GET", f"{url}/health").status == 200 or child.poll() is not None, ENGINE_START)
        yield Engine(url, words, root / "engine.log", child.poll())
    finally:
        process.stop(signal.SIGKILL)
