"""A tiny random model, made once, and plans to train it by."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from trainer import support
from trainer.support import CHATML, CORPUS
from tunesmith.training.plan import TrainPlan

# One thread: tiny matrices gain nothing from more, and wait for each other on a busy machine.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "MPLBACKEND": "Agg"}
os.environ["TUNESMITH_PROGRESS_PORT"] = "0"  # any free one
os.environ["PYTHONPATH"] = ":".join(sys.path)  # of processes that tests start

collect_ignore_glob = [] if find_spec("torch") else ["test_*.py"]

# Warnings of libraries about themselves; none of them is about how we call them.
THIRD_PARTY = [
    "ignore::DeprecationWarning:torch.*",
    "ignore::FutureWarning:torch.*",
    "ignore:TRL currently supports vLLM versions:UserWarning",
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
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
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
    """A function that makes plans over the tiny model: see `support.make_plan`."""
    monkeypatch.setenv("TUNESMITH_TERMINATION_LOG", str(tmp_path / "termination-log"))
    return partial(support.make_plan, tmp_path, tiny)


@pytest.fixture
def message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The termination message's file, empty as the kubelet makes it."""
    path = tmp_path / "termination-log"
    path.touch()
    monkeypatch.setenv("TUNESMITH_TERMINATION_LOG", str(path))
    return path
