"""The estimate of memory beside real training steps on CPU, and sizes beside transformers' own models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trainer.support import make_plan
from tunesmith.training import activations, architecture
from tunesmith.training.activations import Widths
from tunesmith.training.architecture import ModelFacts
from tunesmith.training.estimating import LIBRARIES, estimate
from tunesmith.training.plan import DistributionPlan, TrainPlan

# 37 million parameters, Llama's layout with fewer heads for keys.
MODEL = {
    "model_type": "llama", "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 10,
    "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 8192, "tie_word_embeddings": False,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LORA = {"type": "LoRA", "rank": 8, "alpha": 16, "dropout": 0.05}
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "Full": ({"type": "Full"}, "Float32"),
    "Full, bfloat16": ({"type": "Full"}, "BFloat16"),
    "LoRA": (LORA, "Float32"),
    "QLoRA NF4": ({**LORA, "type": "QLoRA", "quantization": "NF4"}, "Float32"),
    "QLoRA Int8": ({**LORA, "type": "QLoRA", "quantization": "Int8"}, "Float32"),
}
SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
FAMILIES: dict[str, dict[str, Any]] = {
    **{kind: {} for kind in ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "phi",
                             "smollm3", "olmo2", "granite", "starcoder2")},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**MOE, "shared_expert_intermediate_size": 48, "decoder_sparse_step": 2},
    "qwen3_moe": MOE,
}  # fmt: skip
GEMMA3 = {
    "model_type": "gemma3",
    "text_config": {"model_type": "gemma3_text", **SMALL},
    "vision_config": {
        "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14, "vision_use_head": False,
    },
}  # fmt: skip
CONFIGS = {**{kind: {"model_type": kind, **SMALL, **more} for kind, more in FAMILIES.items()}, "gemma3": GEMMA3}
TOKENS = 128


def plan_of(folder: Path, name: str) -> TrainPlan:
    tuner, dtype = CASES[name]
    return make_plan(
        folder, folder / "model", tuner=tuner, dtype=dtype, micro_batch_size=1, global_batch_size=1, max_length=TOKENS
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all results of one run of measure.py."""
    folder = tmp_path_factory.mktemp("memory")
    (folder / "config.json").write_text(json.dumps(MODEL))
    for part, content in (
        ("configs", {name: json.dumps(config) for name, config in CONFIGS.items()}),
        ("plans", {name: plan_of(folder, name).model_dump_json() for name in CASES}),
    ):
        (folder / part).mkdir()
        for name, text in content.items():
            (folder / part / f"{name}.json").write_text(text)
    command = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("measure.py")), str(folder)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def facts() -> ModelFacts:
    found, reason = architecture.facts(MODEL)
    assert found, reason
    return found


@pytest.mark.parametrize("name", CASES)
def test_weights_gradients_and_optimizer_take_what_is_estimated(folder, facts, name):
    found = json.loads((folder / f"plans/{name}.result").read_text())
    needs = estimate(plan_of(folder, name), facts, DistributionPlan(), cpu=True)
    estimated = {"weights": needs.weights, "gradients": needs.gradients, "optimizer": needs.optimizer}
    measured = {key: found[key] for key in estimated}
    print_row(name, "states", sum(estimated.values()), sum(measured.values()))
    for key, size in estimated.items():
        assert size == pytest.approx(measured[key], rel=0.01), key


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("key", ["saved", "checkpointed"])
def test_autograd_keeps_what_is_estimated(folder, facts, name, key):
    found = json.loads((folder / f"plans/{name}.result").read_text())
    plan = plan_of(folder, name)
    training = plan.training.model_copy(update={"gradient_checkpointing": key == "checkpointed"})
    full, compute = plan.tuner.type == "Full", 2 if plan.training.dtype == "BFloat16" else 4
    size = activations.saved(
        plan.model_copy(update={"training": training}), facts, Widths(compute, 4 if full else compute), cpu=True
    )
    if full and compute == 2 and key == "saved":
        size += 2 * facts.linear  # autocast's casts of the weights, which the estimate counts by themselves
    print_row(name, key, size, found[key])
    assert size == pytest.approx(found[key], rel=0.03)


@pytest.mark.parametrize("name", CASES)
def test_the_process_grows_by_what_is_estimated(folder, facts, name):
    """On CPU only roughly where little is trained: the base's pages may stay mapped from its file, which is no memory
    of the process, and freed memory stays with the C library.
    """
    found = json.loads((folder / f"plans/{name}.result").read_text())
    size = estimate(plan_of(folder, name), facts, DistributionPlan(), cpu=True).total - LIBRARIES
    print_row(name, "resident", size, found["resident"])
    assert size == pytest.approx(found["resident"], rel=0.1 if name.startswith("Full") else 0.6)


@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_are_those_of_the_models_of_transformers(folder, name):
    found = json.loads((folder / f"configs/{name}.result").read_text())
    mine, reason = architecture.facts(CONFIGS[name])
    assert mine, reason
    assert mine.parameters == found["parameters"]
    assert {key: list(value) for key, value in mine.linears.items()} == found["linears"]
    assert mine.experts_sides + sum(sides for _, sides in mine.linears.values()) == found["adapters"]


def print_row(name: str, what: str, estimated: int, measured: int) -> None:
    """A row of the table in docs/memory.md."""
    print(f"| {name} | {what} | {estimated / 1e6:.1f} | {measured / 1e6:.1f} | {estimated / measured - 1:+.1%} |")
