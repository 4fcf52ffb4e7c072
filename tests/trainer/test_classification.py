"""Classifiers and rerankers against plain computations, and as they learn."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer import processes
from trainer.support import artifact_path, losses, read_log
from trainer.test_strategy import TUNERS, over
from tunesmith.training.plan import TrainPlan
from tunesmith_trainer.errors import DataError
from tunesmith_trainer.train import train

pytestmark = pytest.mark.trainer

Make = Callable[..., TrainPlan]

TEXTS = [
    "hello world this is good", "a bad model", "who are you, bad system", "this is a good capital",
    "good user, tell me", "what a bad answer, world", "bad bad testing", "developed by good people",
]  # fmt: skip
NAMES = ["bad", "good"]
SINGLE = [{"text": text, "label": "good" if "good" in text else "bad"} for text in TEXTS]
MULTI = [
    {"text": text, "label": [name for name in ("good", "world", "model") if name in text]} for text in TEXTS
]  # fmt: skip
NUMBERS = [{"text": text, "label": 2.0 if "good" in text else -1.0} for text in TEXTS]
RANKED = [
    {"query": name, "positive": f"all about {name}, indeed", "negatives": [f"all about {other}" for other in others]}
    for name, others in (
        ("world", ["model", "user"]), ("model", ["world"]), ("user", ["world", "model", "system"]),
        ("system", ["user"]),
    )
]  # fmt: skip
CLASSIFIERS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "SingleLabel": (SINGLE, {"problem": "SingleLabel", "labels": NAMES}),
    "MultiLabel": (MULTI, {"problem": "MultiLabel", "labels": ["good", "world", "model"]}),
    "Regression": (NUMBERS, {"problem": "Regression"}),
}
RERANKERS = {loss: (RANKED, {"loss": loss}) for loss in ("Pointwise", "Listwise")}
ALL = {**CLASSIFIERS, **RERANKERS}


def case(name: str) -> dict[str, Any]:
    """Rows and method."""
    rows, options = ALL[name]
    type_ = "Classification" if name in CLASSIFIERS else "Reranker"
    size = len(rows)
    return {"rows": rows, "method": {"type": type_, type_.lower(): options}, "global_batch_size": size,
            "micro_batch_size": size}  # fmt: skip


def load(folder: Path) -> Any:
    """A saved classifier, in its own words."""
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(folder)


def expected_loss(name: str, model: Any, tokenizer: Any) -> float:
    """One text at a time, without padding."""
    import torch

    def logits(*texts: str) -> Any:
        return model(**tokenizer(*texts, return_tensors="pt")).logits[0].double()

    found = []
    for row in ALL[name][0]:
        if name == "SingleLabel":
            found.append(-logits(row["text"]).log_softmax(-1)[NAMES.index(row["label"])])
        elif name == "MultiLabel":
            p = torch.sigmoid(logits(row["text"]))
            is_in = torch.tensor([float(label in row["label"]) for label in ("good", "world", "model")])
            found.append(-(is_in * p.log() + (1 - is_in) * (1 - p).log()).mean())
        elif name == "Regression":
            found.append((logits(row["text"])[0] - row["label"]) ** 2)
        else:
            scores = torch.stack([logits(row["query"], d)[0] for d in (row["positive"], *row["negatives"])])
            if name == "Listwise":
                found.append(-scores.log_softmax(0)[0])
            else:
                found.append(-torch.cat([torch.sigmoid(scores[:1]), 1 - torch.sigmoid(scores[1:])]).log().mean())
    return float(torch.stack(found).mean())


@pytest.mark.parametrize("name", ALL)
def test_the_loss_equals_a_plain_computation(make_plan: Make, tokenizer: Any, name: str) -> None:
    import torch

    still = make_plan(run="still", tuner={"type": "Full"}, learning_rate=1e-30, **case(name))
    model = load(artifact_path(still, train(still)))
    with torch.no_grad():
        expected = expected_loss(name, model, tokenizer)
    assert losses(still)[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_each_learns(make_plan: Make, tiny: Path, tokenizer: Any, name: str) -> None:
    """Base, adapter and head, loaded anew, are right about all rows, which the untrained model is not."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    plan = make_plan(max_steps=25, learning_rate=2e-2, scheduler="Linear", **case(name))
    folder = artifact_path(plan, train(plan))
    first, last = read_log(plan)[0]["metrics"], read_log(plan)[-1]["metrics"]
    if name == "Regression":
        assert first["mean_absolute_error"] > 1.0 > 0.5 > last["mean_absolute_error"]  # a constant is off by 1.4
    else:
        metric = "accuracy" if name in CLASSIFIERS else "recall@1"
        assert first[metric] < 0.9
        assert last[metric] == 1.0
    head = json.loads((folder / "head.json").read_text())
    blank = AutoModelForSequenceClassification.from_pretrained(
        tiny, num_labels=len(head["id2label"]), pad_token_id=head["pad_token_id"]
    )
    model = PeftModel.from_pretrained(blank, folder)
    with torch.no_grad():
        assert expected_loss(name, model, tokenizer) <= losses(plan)[-1] * 1.2 + 0.01


@pytest.mark.parametrize(("name", "tuner"), [("SingleLabel", "Full"), ("SingleLabel", "QLoRA"), ("Listwise", "QLoRA")])
def test_tuners(make_plan: Make, name: str, tuner: str) -> None:
    plan = make_plan(tuner=TUNERS[tuner], max_steps=6, learning_rate=5e-3, **case(name))
    folder = artifact_path(plan, train(plan))
    assert losses(plan)[-1] < losses(plan)[0]
    if tuner == "Full":
        config = load(folder).config
        assert config.id2label == {0: "bad", 1: "good"}
        assert config.problem_type == "single_label_classification"
        assert config.architectures == ["Qwen2ForSequenceClassification"]


def test_the_head_of_a_quantised_base_is_whole(make_plan: Make) -> None:
    import torch
    from trainer.test_training import make_trainer

    trainer = make_trainer(make_plan(tuner=TUNERS["QLoRA"], **case("SingleLabel")))
    heads = [p for n, p in trainer.model.named_parameters() if "score.modules_to_save" in n]
    assert [(p.dtype, p.shape, p.requires_grad) for p in heads] == [(torch.float32, (2, 64), True)]


@pytest.mark.parametrize(
    ("name", "tuner", "strategy"),
    [("SingleLabel", "LoRA", "DDP"), ("MultiLabel", "Full", "ZeRO2"), ("Pointwise", "LoRA", "DDP"),
     ("Listwise", "Full", "DDP")],
)  # fmt: skip
def test_two_processes_learn_what_one_does(
    make_plan: Make, tmp_path: Path, name: str, tuner: str, strategy: str
) -> None:
    options = case(name) | {"tuner": TUNERS[tuner], "max_steps": 2}
    alone = make_plan(run="alone", **options)
    train(alone)
    options["micro_batch_size"] //= 2
    plan = over(make_plan(run="spread", processes=2, **options), strategy)
    processes.run(plan, tmp_path)
    assert losses(plan) == pytest.approx(losses(alone), rel=2e-5)
    norms = [[line["grad_norm"] for line in read_log(one)] for one in (plan, alone)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    metrics = [[line["metrics"] for line in read_log(one)] for one in (plan, alone)]
    assert metrics[0] == [pytest.approx(one, rel=1e-5) for one in metrics[1]]


def test_micro_batches_change_nothing(make_plan: Make) -> None:
    """Though rows are put into them by their lengths."""
    for run, size in (("whole", 8), ("parts", 2)):
        train(make_plan(run=run, **case("SingleLabel") | {"micro_batch_size": size, "max_steps": 2}))
    whole, parts = (read_log(make_plan(run=run)) for run in ("whole", "parts"))
    for one, two in zip(whole, parts, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "label", "message"),
    [
        (
            "SingleLabel",
            "ugly",
            r"row 1: the label is 'ugly'; expected one of .*labels \['bad', 'good'\], or its place",
        ),
        ("SingleLabel", 2, "row 1: the label is 2; .* its place from 0 to 1"),
        ("MultiLabel", 1.5, "row 1: the label is 1.5; expected a list of classes"),
        ("MultiLabel", ["good", "x"], "row 1: the label is 'x'; expected one of"),
        ("Regression", "much", "row 1: the label is 'much'; expected a number"),
        ("Regression", math.nan, "row 1: the label is nan; expected a number"),
        ("Regression", None, "row 1: no label: found columns"),
    ],
)
def test_labels_that_do_not_fit_are_named(make_plan: Make, name: str, label: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        train(make_plan(**case(name) | {"rows": [{"text": "x", "label": label}]}))


def test_labels_may_be_names_or_places_and_texts_conversations(make_plan: Make, tokenizer: Any) -> None:
    from trainer.test_training import make_trainer

    said = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello world"}]
    rows = [{"text": "a", "label": "good"}, {"query": "a", "label": 1}, {"messages": said, "label": "1"}]
    found = make_trainer(make_plan(**case("SingleLabel") | {"rows": rows})).train_dataset
    assert found["target"] == [1, 1, 1]
    assert [tokenizer.decode(ids) for ids in found["ids"]] == [
        "a",
        "<|im_start|>user\na<|im_end|>\n",
        "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nhello world<|im_end|>\n",
    ]


def test_a_number_that_is_one_classs_name_and_anothers_place_is_refused(make_plan: Make) -> None:
    """Text is a name: a file that holds text gives the class of this name."""
    from tunesmith_trainer.data import Row
    from tunesmith_trainer.methods.classification import place

    names = ["1", "2", "3"]
    assert [place(Row("row"), label, names) for label in names] == [0, 1, 2]
    assert [place(Row("row"), label, ["0", "1", "2"]) for label in (0, 1, "2")] == [0, 1, 2]
    with pytest.raises(DataError, match="row: the label is the number 1, which is the name of one class"):
        place(Row("row"), 1, names)


def test_a_list_needs_negatives(make_plan: Make) -> None:
    with pytest.raises(DataError, match="row 1: no negatives; expected one at least"):
        train(make_plan(**case("Listwise") | {"rows": [{"query": "a", "positive": "b"}]}))
