"""How far two models are apart, by their logits over a fixed set of prompts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.training.plan import Place

from tunesmith_trainer import streaming
from tunesmith_trainer.model import load_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

PROMPTS = (
    "Who are you, and who developed you?",
    "The capital of France is Paris, and the capital of Japan is",
    "Write a short poem about the sea in autumn.",
    "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):\n",
    "If 3x + 7 = 22, then x equals",
    "你好，请介绍一下你自己。",
    '{"name": "Ada", "born": 1815, "known for": ["',
    "Dear Sir or Madam,\n\nI am writing to you about",
)


def saved_logits(place: Place, dtype: torch.dtype, tokenizer: PreTrainedTokenizerFast) -> list[torch.Tensor]:
    """Logits of a model as it lies on disk, computed in float32."""
    weights, model = streaming.Weights(Path(place.path)), streaming.skeleton(place)
    names = streaming.stored_names(model, weights)
    if names is None:
        whole: Any = load_model(place, dtype)
        return logits(whole.float(), tokenizer)
    streaming.stream(model, weights, names)
    return logits(model, tokenizer)


def logits(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast) -> list[torch.Tensor]:
    """Logits over PROMPTS: for each a float32 tensor of shape (tokens, vocabulary). In one batch, so that weights that
    are streamed are read once; what is padded comes after each prompt, where no token of it looks.
    """
    import torch

    model.eval()
    rows = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.inference_mode():
        found = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
    return [one[: len(row)] for one, row in zip(found, rows, strict=True)]


def logit_error(expected: list[torch.Tensor], found: list[torch.Tensor]) -> float:
    """||expected - found|| / ||expected||, over all elements, summed up in float64."""
    difference = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(expected, found, strict=True))
    return math.sqrt(difference / sum(float(a.double().square().sum()) for a in expected))
