"""Embeddings: each loss against a plain computation, over processes, as they learn, and as others load them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer import processes
from trainer.support import artifact_path, losses, read_log
from trainer.test_strategy import TUNERS, over
from tunesmith.training.plan import TrainPlan
from tunesmith_trainer.errors import ConfigError, DataError
from tunesmith_trainer.train import train

pytestmark = pytest.mark.trainer

Make = Callable[..., TrainPlan]

WORDS = ["world", "model", "user", "system", "capital", "tiny", "Xiao Huang", "Hangzhou"]
ROWS = [
    {"query": f"what about {word}?", "positive": f"{'hello ' * number}I tell you of {word}"}
    | ({"negatives": [f"I tell you of {WORDS[number - 1]}", "no"][: number % 3]} if number % 3 else {})
    for number, word in enumerate(WORDS)
]
PAIRS = [
    {
        "sentence1": f"what about {word}?",
        "sentence2": f"this is {WORDS[number // 2 * 2]}",
        "score": float(number % 2 == 0),
    }
    for number, word in enumerate(WORDS)
]
CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "InfoNCE": (ROWS, {"temperature": 0.1}),
    "Mean": (ROWS, {"temperature": 0.1, "pooling": "Mean"}),
    "Matryoshka": (ROWS, {"temperature": 0.1, "dimensions": [8, 32]}),
    "Cosine": (PAIRS, {"loss": "Cosine"}),
    "Contrastive": (PAIRS, {"loss": "Contrastive", "margin": 0.4, "dimensions": [16]}),
}


def case(name: str) -> dict[str, Any]:
    """Rows and method."""
    rows, options = CASES[name]
    return {"rows": rows, "method": {"type": "Embedding", "embedding": options}, "global_batch_size": 8,
            "micro_batch_size": 8}  # fmt: skip


def vector(model: Any, tokenizer: Any, text: str, mean: bool, size: int) -> Any:
    """One text's vector, the way sentence-transformers makes it."""
    hidden = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].double()
    found = (hidden.mean(0) if mean else hidden[-1])[:size]
    return found / found.norm()


def expected_loss(name: str, model: Any, tokenizer: Any) -> float:
    """All similarities by hand."""
    import torch

    rows, options = CASES[name]
    total = 0.0
    for size in (64, *options.get("dimensions", [])):

        def of(text: str, size: int = size) -> Any:
            return vector(model, tokenizer, text, options.get("pooling") == "Mean", size)

        found = []
        if name in ("Cosine", "Contrastive"):
            for row in rows:
                alike = of(row["sentence1"]) @ of(row["sentence2"])
                if name == "Cosine":
                    found.append((alike - row["score"]) ** 2)
                else:
                    apart = 1 - alike
                    found.append(apart**2 / 2 if row["score"] else torch.relu(0.4 - apart) ** 2 / 2)
        else:
            documents = [of(row["positive"]) for row in rows]
            documents += [of(text) for row in rows for text in row.get("negatives", [])]
            for number, row in enumerate(rows):
                anchor = of(row["query"])
                scores = torch.stack([anchor @ document for document in documents]) / 0.1
                found.append(-scores.log_softmax(0)[number])
        total += float(torch.stack(found).mean())
    return total


@pytest.mark.parametrize("name", CASES)
def test_the_loss_equals_a_plain_computation(make_plan: Make, tiny: Path, tokenizer: Any, name: str) -> None:
    import torch
    from transformers import AutoModel

    plan = make_plan(tuner={"type": "Full"}, **case(name))
    train(plan)
    with torch.no_grad():
        expected = expected_loss(name, AutoModel.from_pretrained(tiny), tokenizer)
    assert losses(plan)[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "tuner", "strategy"),
    [("InfoNCE", "Full", "DDP"), ("InfoNCE", "LoRA", "ZeRO2"), ("Matryoshka", "LoRA", "DDP"),
     ("Contrastive", "LoRA", "DDP")],
)  # fmt: skip
def test_negatives_of_two_processes_are_those_of_one(
    make_plan: Make, tmp_path: Path, name: str, tuner: str, strategy: str
) -> None:
    """The rows differ in their numbers of negatives, so that the processes do. Gradients say that they are gathered
    with theirs.
    """
    options = case(name) | {"tuner": TUNERS[tuner], "max_steps": 2}
    alone = make_plan(run="alone", **options)
    train(alone)
    plan = over(make_plan(run="spread", processes=2, **options | {"micro_batch_size": 4}), strategy)
    processes.run(plan, tmp_path)
    assert losses(plan) == pytest.approx(losses(alone), rel=2e-5)
    norms = [[line["grad_norm"] for line in read_log(one)] for one in (plan, alone)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.parametrize("tuner", TUNERS)
def test_it_learns_and_is_saved_as_sentence_transformers_wants_it(
    make_plan: Make, tiny: Path, tokenizer: Any, tuner: str
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModel

    plan = make_plan(
        tuner=TUNERS[tuner], max_steps=20, learning_rate=3e-3 if tuner == "Full" else 1e-2, **case("InfoNCE")
    )
    folder = artifact_path(plan, train(plan))
    assert read_log(plan)[0]["metrics"]["recall@1"] < 0.6
    assert read_log(plan)[-1]["metrics"]["recall@1"] == 1.0
    assert [(m["path"], m["type"].rsplit(".")[-1]) for m in json.loads((folder / "modules.json").read_text())] == [
        ("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"),
    ]  # fmt: skip
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    assert (pooling["word_embedding_dimension"], pooling["pooling_mode_lasttoken"]) == (64, True)
    assert (folder / "config_sentence_transformers.json").is_file()
    if tuner == "Full":
        assert json.loads((folder / "config.json").read_text())["architectures"] == ["Qwen2Model"]
        model = AutoModel.from_pretrained(folder)
    else:
        model = PeftModel.from_pretrained(AutoModel.from_pretrained(tiny), folder)
    with torch.no_grad():
        documents = torch.stack([vector(model, tokenizer, row["positive"], False, 64) for row in ROWS])  # type: ignore[arg-type]
        for number, row in enumerate(ROWS):
            anchor = vector(model, tokenizer, row["query"], False, 64)  # type: ignore[arg-type]
            if tuner != "QLoRA":  # whose adapter is loaded on a base that is not quantised here
                assert int((documents @ anchor).argmax()) == number


@pytest.mark.parametrize("name", ["Cosine", "Contrastive"])
def test_pairs_are_learned(make_plan: Make, name: str) -> None:
    plan = make_plan(max_steps=25, learning_rate=1e-2, **case(name))
    train(plan)
    first, last = read_log(plan)[0]["metrics"], read_log(plan)[-1]["metrics"]
    if name == "Cosine":
        assert first["mean_absolute_error"] > 0.3 > 0.15 > last["mean_absolute_error"]
    else:
        assert first["accuracy"] < 0.9
        assert last["accuracy"] == 1.0


def test_what_cannot_be_is_refused(make_plan: Make) -> None:
    with pytest.raises(DataError, match="row 1: no label; expected one beside the pair, as loss is Cosine"):
        train(make_plan(**case("Cosine") | {"rows": [{"sentence1": "a", "sentence2": "b"}]}))
    with pytest.raises(DataError, match=r"row 1: the label is 0.5; expected 1 \(alike\) or 0"):
        train(make_plan(**case("Contrastive") | {"rows": [{"sentence1": "a", "sentence2": "b", "score": 0.5}]}))
    with pytest.raises(DataError, match="row 1: no positive: found columns"):
        train(make_plan(**case("InfoNCE") | {"rows": [{"query": "a"}]}))
    alone = {"micro_batch_size": 1, "global_batch_size": 1, "rows": [{"query": "a", "positive": "b"}]}
    with pytest.raises(ConfigError, match="InfoNCE needs other rows as negatives"):
        train(make_plan(**case("InfoNCE") | alone))
    wide = {"method": {"type": "Embedding", "embedding": {"dimensions": [65]}}}
    with pytest.raises(ConfigError, match="dimensions: 65, but the model's vectors have 64"):
        train(make_plan(**case("InfoNCE") | wide))
