"""A tiny random model, made once, and plans to train it by."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tunesmith.training.plan import TrainPlan

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "MPLBACKEND": "Agg"}

collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]

# Warnings of libraries about themselves; none of them is about how we call them.
THIRD_PARTY = [
    "ignore::DeprecationWarning:torch.*",
    "ignore::FutureWarning:torch.*",
]

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Narrow exceptions to `error`, for the tests of this folder only."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for one in THIRD_PARTY:
                item.add_marker(pytest.mark.filterwarnings(one))


def make_tokenizer(template: str | None = CHATML) -> Any:
    """A byte-level BPE tokenizer that knows the special tokens of ChatML and of Llama 3."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 10, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special[3:],
    )
    fast.chat_template = template
    return fast


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The tiny model's tokenizer."""
    return make_tokenizer()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A random Qwen2 of two layers, float32."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("tiny")
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():  # larger than the default initialisation, so that logits differ visibly between inputs
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make_plan(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainPlan]:
    """A function that makes plans over the tiny model: keywords set fields of `training`, or whole parts."""
    monkeypatch.setenv("TUNESMITH_PROGRESS_PORT", "0")
    monkeypatch.setenv("TUNESMITH_TERMINATION_LOG", str(tmp_path / "termination-log"))

    def make(
        run: str = "run",
        rows: list[dict[str, Any]] = ROWS,
        tuner: dict[str, Any] | None = None,
        method: dict[str, Any] | None = None,
        processes: int = 1,
        **training: Any,
    ) -> TrainPlan:
        data = tmp_path / f"{run}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        store = tmp_path / "store"
        values = {
            "epochs": 1, "max_steps": 1, "learning_rate": 1e-3, "global_batch_size": 4, "micro_batch_size": 4,
            "max_length": 128, "packing": False, "scheduler": "Constant", "warmup_ratio": 0.0, "weight_decay": 0.0,
            "max_grad_norm": 1.0, "gradient_checkpointing": False, "dtype": "Float32", "seed": 1, "logging_steps": 1,
            "checkpoint_steps": 100,
        } | training  # fmt: skip
        values["gradient_accumulation_steps"] = values["global_batch_size"] // (values["micro_batch_size"] * processes)
        return TrainPlan.model_validate(
            {
                "job": {"namespace": "test", "name": run, "uid": f"uid-{run}"},
                "model": {"uri": "pvc://models/tiny", "path": str(tiny)},
                "datasets": [{"uri": f"configmap://data/{run}.jsonl", "path": str(data)}],
                "method": method or {"type": "SFT", "loss_on": "Assistant"},
                "tuner": tuner or {"type": "LoRA", "rank": 4, "alpha": 16, "dropout": 0.0},
                "training": values,
                "nodes": 1,
                "processes_per_node": processes,
                "output": {"uri": "pvc://store", "path": str(store), "run": str(store / "jobs" / run)},
            }
        )

    return make


def read_log(plan: TrainPlan) -> list[dict[str, Any]]:
    """The lines of a run's logging.jsonl."""
    return [json.loads(line) for line in (Path(plan.output.run) / "logging.jsonl").read_text().splitlines()]


@pytest.fixture
def log_of() -> Callable[[TrainPlan], list[dict[str, Any]]]:
    """`read_log`, for tests."""
    return read_log


@pytest.fixture
def artifact_path() -> Callable[[TrainPlan, Any], Path]:
    """A function: (plan, ending) -> the artefact's folder."""
    return lambda plan, ending: Path(plan.output.path, ending.artifact.kind, ending.artifact.digest.removeprefix("sha256:"))
