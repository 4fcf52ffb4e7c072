"""Embedding and classification models, as our jobs make them, served by the engine that the operator would start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving.engines import started

pytestmark = pytest.mark.trainer
TEXTS = ["hello world", "who are you? I am a model"]


def model(forge: Any, folder: Path, kind: str) -> Path:
    """The base with another head, in the layout of our jobs' artefacts."""
    import torch
    import transformers

    base = forge.base()
    transformers.AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    torch.manual_seed(1)
    config = transformers.AutoConfig.from_pretrained(base)
    config.pad_token_id = 0
    if kind == "classifier":
        config.num_labels = 3
        transformers.Qwen2ForSequenceClassification(config).save_pretrained(folder)
        return folder
    transformers.Qwen2Model(config).save_pretrained(folder)
    types = ["models.Transformer", "models.Pooling", "models.Normalize"]
    modules = [
        {"idx": n, "name": str(n), "path": f"{n}_{t.split('.')[1]}" if n else "", "type": f"sentence_transformers.{t}"}
        for n, t in enumerate(types)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": config.hidden_size, "pooling_mode_lasttoken": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": False, **pooling}))
    return folder


@pytest.fixture
def served(forge: Any, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    """(address, folder) of a model that is served with the operator's own arguments."""
    folder = model(forge, tmp_path / "model", request.param)
    with started(folder, tmp_path) as engine:
        yield engine.url, folder


@pytest.mark.parametrize("served", ["embedding"], indirect=True)
def test_embeddings_are_those_of_transformers(served, call):
    import torch
    from transformers import AutoModel, AutoTokenizer

    url, folder = served
    answer = call("POST", f"{url}/v1/embeddings", {"model": "base", "input": TEXTS})
    assert answer.status == 200, answer
    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    for text, found in zip(TEXTS, answer.json["data"], strict=True):
        with torch.no_grad():
            hidden = network(**tokenizer(text, return_tensors="pt")).last_hidden_state[0, -1]
        assert torch.allclose(torch.tensor(found["embedding"]), hidden / hidden.norm(), atol=1e-4)


@pytest.mark.parametrize("served", ["classifier"], indirect=True)
def test_classes_are_those_of_transformers(served, call):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    url, folder = served
    answer = call("POST", f"{url}/classify", {"model": "base", "input": TEXTS})
    assert answer.status == 200, answer
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSequenceClassification.from_pretrained(folder)
    for text, found in zip(TEXTS, answer.json["data"], strict=True):
        with torch.no_grad():
            logits = network(**tokenizer(text, return_tensors="pt")).logits[0]
        assert torch.allclose(torch.tensor(found["probs"]), logits.softmax(-1), atol=1e-4)
