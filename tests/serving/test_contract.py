"""The small engine of tests/fleet answers as vLLM does, as far as the agent and clients can tell."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.trainer

APP = Path(__file__).parents[1] / "fleet" / "app"
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@pytest.fixture(scope="module")
def small(pod, make_process, free_port):
    """A small engine over the same base and the same guard."""
    port = free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(pod.root / "guard"),
        "TUNESMITH_ADMIN_TOKEN_FILE": str(pod.root / "token"),
    }
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", f"--model={pod.base}"),
        *("--served-model-name=base", f"--port={port}", "--max-lora-rank=16", "--middleware=tunesmith_guard.Guard"),
    ]
    process = make_process(command, environment, pod.root / "small.log", APP)
    process.start()
    yield f"http://127.0.0.1:{port}"
    process.stop()


def broken(folder: Path, to: Path, cut: int | None) -> Path:
    shutil.copytree(folder, to)
    weights = to / "adapter_model.safetensors"
    if cut is None:
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:-cut])
    return to


def test_the_small_engine_answers_as_vllm_does(pod, forge, call, small, tmp_path):
    end = time.monotonic() + 30
    while call("GET", f"{small}/health").status != 200:
        assert time.monotonic() < end
        time.sleep(0.1)
    good, large = forge.adapter(pod.base, seed=70), forge.adapter(pod.base, seed=71, rank=32)
    cut, empty = broken(good, tmp_path / "cut", 100), broken(good, tmp_path / "empty", None)
    asked: list[tuple[str, str, Any]] = [
        ("load", LOAD, {"lora_name": "c", "lora_path": str(good)}),
        ("again", LOAD, {"lora_name": "c", "lora_path": str(good)}),
        ("the base's name", LOAD, {"lora_name": "base", "lora_path": str(good)}),
        ("nothing there", LOAD, {"lora_name": "d", "lora_path": "/nowhere/at/all"}),
        ("rank", LOAD, {"lora_name": "d", "lora_path": str(large)}),
        ("truncated", LOAD, {"lora_name": "d", "lora_path": str(cut)}),
        ("no weights", LOAD, {"lora_name": "d", "lora_path": str(empty)}),
        ("unload", UNLOAD, {"lora_name": "c"}),
        ("unload again", UNLOAD, {"lora_name": "c"}),
        ("unknown model", "/v1/completions", {"model": "c", "prompt": "x", "max_tokens": 1}),
        ("no such path", "/adapters", {}),
    ]
    token = {"X-Tunesmith-Token": pod.token}

    def answers(url: str) -> dict[str, Any]:
        result = {}
        for what, path, body in asked:
            answer = call("POST", url + path, body, token)
            error = answer.json["error"] if answer.status != 200 else {"message": answer.text, "type": ""}
            # vLLM adds details to what the safetensors library says.
            words = re.findall(
                r"deserializing header|doesn't contain tensors|greater than max_lora_rank", error["message"]
            )
            result[what] = (answer.status, error["type"], words or error["message"][:60])
        return result

    assert answers(small) == answers(pod.url)
    one, other = (call("GET", f"{url}/v1/models").json["data"][0] for url in (small, pod.url))
    assert one.keys() <= other.keys()
    for key in ("id", "root", "parent"):
        assert one[key] == other[key]
    streams = [
        call("POST", f"{url}/v1/completions", {"model": "base", "prompt": "x", "max_tokens": 3, "stream": True}).text
        for url in (small, pod.url)
    ]
    for text in streams:
        assert text.startswith("data: {")
        assert text.rstrip().endswith("data: [DONE]")
