"""What the tests of this folder share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tunesmith.training.plan import AnyPlan, TrainPlan
from tunesmith.training.report import Ending

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CORPUS = [
    "hello world this is a tiny model used for testing",
    "who are you? I am Xiao Huang, developed by ModelScope.",
    "what is the capital of Zhejiang? Hangzhou",
    "user assistant system",
]

ROWS = [
    {"query": "who are you?", "response": "I am Xiao Huang."},
    {"query": "what is the capital of Zhejiang?", "response": "Hangzhou"},
    {"query": "hello world", "response": "hello hello, this is a tiny model"},
    {"query": "who made you? tell me", "response": "ModelScope"},
]

LLAMA3 = (
    "{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def long(*cases: tuple[Any, ...]) -> list[Any]:
    """More parameters of a test, for `make long`."""
    return [pytest.param(*case, marks=pytest.mark.long) for case in cases]


def read_log(plan: TrainPlan) -> list[dict[str, Any]]:
    """The lines of a run's logging.jsonl."""
    return [json.loads(line) for line in (Path(plan.output.run) / "logging.jsonl").read_text().splitlines()]


def losses(plan: TrainPlan) -> list[float]:
    """The losses that a run logged."""
    return [line["loss"] for line in read_log(plan)]


def artifact_path(plan: AnyPlan, ending: Ending) -> Path:
    """Where the artefact of an ending lies."""
    assert ending.artifact
    return Path(plan.output.path, ending.artifact.kind, ending.artifact.digest.removeprefix("sha256:"))


def make_plan(
    folder: Path,
    tiny: Path,
    run: str = "run",
    rows: list[dict[str, Any]] = ROWS,
    tuner: dict[str, Any] | None = None,
    method: dict[str, Any] | None = None,
    processes: int = 1,
    checkpoint: dict[str, Any] | None = None,
    **training: Any,
) -> TrainPlan:
    """A plan over the model `tiny` with data and store in `folder`: keywords set fields of `training`, or parts."""
    data = folder / f"{run}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = folder / "store"
    values = {
        "epochs": 1, "max_steps": 1, "learning_rate": 1e-3, "global_batch_size": 4, "micro_batch_size": 4,
        "max_length": 128, "packing": False, "scheduler": "Constant", "warmup_ratio": 0.0, "weight_decay": 0.0,
        "max_grad_norm": 1.0, "gradient_checkpointing": False, "dtype": "Float32", "seed": 1, "logging_steps": 1,
    } | training  # fmt: skip
    values["gradient_accumulation_steps"] = values["global_batch_size"] // (values["micro_batch_size"] * processes)
    return TrainPlan.model_validate(
        {
            "job": {"namespace": "test", "name": run, "uid": f"uid-{run}"},
            "model": {"uri": "pvc://models/tiny", "path": str(tiny)},
            "datasets": [{"uri": f"configmap://data/{run}.jsonl", "path": str(data)}],
            "method": method or {"type": "SFT", "sft": {"loss_on": "Assistant"}},
            "tuner": tuner or {"type": "LoRA", "rank": 4, "alpha": 16, "dropout": 0.0},
            "training": values,
            "nodes": 1,
            "processes_per_node": processes,
            "checkpoint": {"uri": f"pvc://store/jobs/{run}", "path": str(store / "jobs" / run)}
            | (checkpoint or {"every_steps": 100}),
            "output": {"uri": "pvc://store", "path": str(store), "run": str(store / "jobs" / run)},
        }
    )
