"""DPO, KTO, CPO, SimPO, ORPO and reward models against plain computations, and as they learn."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from trainer import processes
from trainer.support import artifact_path, long, losses, read_log
from trainer.test_checkpoint import Stop
from trainer.test_strategy import TUNERS, over
from tunesmith.training.plan import Place, TrainPlan
from tunesmith_trainer.errors import DataError, Interrupted
from tunesmith_trainer.train import train

pytestmark = pytest.mark.trainer

Make = Callable[..., TrainPlan]
ASKED = ["who are you?", "hello world", "what is the capital?", "who made you?", "tell me", "is this a model?"]
PAIRS = [
    {"query": query, "response": f"hello {'model ' * number}", "rejected_response": "what is the system?"}
    for number, query in enumerate(ASKED)
]
JUDGED = [
    {"query": query, "response": "hello model" if good else "what is the system?", "label": good}
    for number, query in enumerate(ASKED)
    for good in (number % 3 > 0,)
]
METHODS: dict[str, dict[str, Any]] = {
    "DPO": {"type": "DPO", "dpo": {"beta": 0.3}},
    "KTO": {"type": "KTO", "kto": {"beta": 0.3, "desirableWeight": 1.5}},
    "CPO": {"type": "CPO", "cpo": {"beta": 0.2, "nllWeight": 0.7}},
    "SimPO": {"type": "SimPO", "simpo": {"beta": 2.0, "gamma": 0.5}},
    "ORPO": {"type": "ORPO", "orpo": {"oddsRatioWeight": 0.3}},
    "RewardModel": {"type": "RewardModel", "rewardModel": {"centerWeight": 0.1}},
}


def rows_of(name: str) -> list[dict[str, Any]]:
    """The dataset for a method."""
    return JUDGED if name == "KTO" else PAIRS


def learned_from(name: str) -> list[dict[str, Any]]:
    """As `rows_of`, but which answer is better depends on the question: no model prefers them all by chance."""
    swapped = {"response": "rejected_response", "rejected_response": "response", "query": "query"}
    if name == "KTO":
        return JUDGED
    return [{swapped[key] if place % 2 else key: row[key] for key in row} for place, row in enumerate(PAIRS)]


def prompt(row: dict[str, Any]) -> str:
    """A question as the model reads it."""
    return f"<|im_start|>user\n{row['query']}<|im_end|>\n<|im_start|>assistant\n"


def answer_log_probabilities(model: Any, tokenizer: Any, before: str, answer: str) -> Any:
    """Log p of each token of an answer, its end included: one row at a time, masks by hand."""
    import torch

    head, tail = tokenizer(before)["input_ids"], tokenizer(answer + "<|im_end|>")["input_ids"]
    logits = model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
    return torch.stack([logits[len(head) + place - 1, token] for place, token in enumerate(tail)])


@cache
def base(folder: Path) -> Any:
    """The tiny model, as it is before any training."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def other(tiny: Path, folder: Path) -> Path:
    """Another model than the tiny one, for a reference that differs."""
    import shutil

    import torch
    from transformers import AutoModelForCausalLM

    shutil.copytree(tiny, folder)
    model = AutoModelForCausalLM.from_pretrained(tiny)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    model.save_pretrained(folder)
    return folder


def with_reference(plan: TrainPlan, folder: Path) -> TrainPlan:
    """`plan` with another reference model."""
    field = f"spec.method.{plan.method.type.lower()}.referenceModel"
    method = plan.method.model_copy(update={"models": {field: Place(uri="pvc://models/other", path=str(folder))}})
    return plan.model_copy(update={"method": method})


SIX = {"global_batch_size": 6, "micro_batch_size": 6}


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "Sigmoid"}, {"loss": "Sigmoid", "labelSmoothing": 0.2}, {"loss": "Hinge"}, {"loss": "IPO"},
        {"loss": "Robust", "labelSmoothing": 0.2}, {"loss": "Sigmoid", "sftWeight": 0.5},
    ],
)  # fmt: skip
def test_dpo_equals_a_plain_computation(
    make_plan: Make, tiny: Path, tmp_path: Path, tokenizer: Any, options: dict[str, Any]
) -> None:
    import torch
    from torch.nn.functional import logsigmoid

    beta, share = 0.3, options.get("labelSmoothing", 0.0)
    folder = other(tiny, tmp_path / "other")
    plan = make_plan(
        rows=PAIRS, tuner={"type": "Full"}, method={"type": "DPO", "dpo": {"beta": beta, **options}}, **SIX
    )
    train(with_reference(plan, folder))
    found = []
    with torch.no_grad():
        all_chosen = []
        for row in PAIRS:
            sides = []
            for name in ("response", "rejected_response"):
                own = answer_log_probabilities(base(tiny), tokenizer, prompt(row), row[name])
                reference = answer_log_probabilities(base(folder), tokenizer, prompt(row), row[name])
                sides.append((own.sum() - reference.sum(), len(own)))
                all_chosen += own.tolist() if name == "response" else []
            (better, n), (worse, m) = sides
            z = beta * (better - worse)
            found.append(
                {
                    "Sigmoid": -(1 - share) * logsigmoid(z) - share * logsigmoid(-z),
                    "Hinge": torch.relu(1 - z),
                    "IPO": (better / n - worse / m - 1 / (2 * beta)) ** 2,
                    "Robust": (-(1 - share) * logsigmoid(z) + share * logsigmoid(-z)) / (1 - 2 * share),
                }[options["loss"]]
            )
    expected = float(torch.stack(found).mean())
    if weight := options.get("sftWeight"):
        expected -= weight * sum(all_chosen) / len(all_chosen)
    assert losses(plan)[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("tuner", ["Full", "LoRA", "QLoRA"])
def test_dpo_begins_at_its_reference(make_plan: Make, tuner: str) -> None:
    """The model before training is the reference: log 2, whatever the tuner; and it moves away from it."""
    plan = make_plan(rows=PAIRS, tuner=TUNERS[tuner], method=METHODS["DPO"], max_steps=2, learning_rate=1e-2, **SIX)
    train(plan)
    first, second = read_log(plan)
    assert first["loss"] == pytest.approx(0.6931472, rel=1e-5)
    assert first["metrics"]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert second["metrics"]["rewards/margins"] > 0.01


def test_kto_equals_a_plain_computation(make_plan: Make, tiny: Path, tmp_path: Path, tokenizer: Any) -> None:
    import torch
    from trainer.test_training import make_trainer

    folder = other(tiny, tmp_path / "other")
    plan = with_reference(make_plan(rows=JUDGED, tuner={"type": "Full"}, method=METHODS["KTO"], **SIX), folder)
    rows = make_trainer(plan).train_dataset
    train(plan)
    with torch.no_grad():
        ratios, divergences = [], []
        for row in rows:
            before = tokenizer.decode(row["prompt_ids"])
            for ids, found in ((row["completion_ids"], ratios), (row["KL_completion_ids"], divergences)):
                answer = tokenizer.decode(ids).removesuffix("<|im_end|>")
                own, reference = (
                    answer_log_probabilities(base(path), tokenizer, before, answer).sum() for path in (tiny, folder)
                )
                found.append(own - reference)
        z = torch.stack(divergences).mean().clamp(min=0)
        each = [
            1.5 * (1 - torch.sigmoid(0.3 * (ratio - z))) if row["label"] else 1 - torch.sigmoid(0.3 * (z - ratio))
            for row, ratio in zip(rows, ratios, strict=True)
        ]
    assert losses(plan)[0] == pytest.approx(float(torch.stack(each).mean()), rel=1e-5)
    # Each answer is once another prompt's.
    assert sorted(rows["KL_completion_ids"]) == sorted(rows["completion_ids"])


@pytest.mark.parametrize("name", ["CPO", "SimPO", "ORPO"])
def test_pairwise_losses_equal_a_plain_computation(make_plan: Make, tiny: Path, tokenizer: Any, name: str) -> None:
    import torch

    plan = make_plan(rows=PAIRS, tuner={"type": "Full"}, method=METHODS[name], **SIX)
    train(plan)
    found = []
    with torch.no_grad():
        for row in PAIRS:
            better, worse = (
                answer_log_probabilities(base(tiny), tokenizer, prompt(row), row[side]).double()
                for side in ("response", "rejected_response")
            )
            if name == "CPO":
                one = -torch.log(torch.sigmoid(0.2 * (better.sum() - worse.sum()))) - 0.7 * better.mean()
            elif name == "SimPO":
                one = -torch.log(torch.sigmoid(2.0 * better.mean() - 2.0 * worse.mean() - 0.5))
            else:
                p, q = better.mean().exp(), worse.mean().exp()
                one = -better.mean() - 0.3 * torch.log(torch.sigmoid(torch.log(p / (1 - p)) - torch.log(q / (1 - q))))
            found.append(one)
    assert losses(plan)[0] == pytest.approx(float(torch.stack(found).mean()), rel=1e-5)


def classifier(folder: Path) -> Any:
    """A saved sequence classifier."""
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize("margin", [False, True])
def test_the_reward_models_loss_equals_a_plain_computation(make_plan: Make, tokenizer: Any, margin: bool) -> None:
    import torch

    rows = [row | ({"margin": number / 4} if margin else {}) for number, row in enumerate(PAIRS)]
    options: dict[str, Any] = {"rows": rows, "tuner": {"type": "Full"}, "method": METHODS["RewardModel"], **SIX}
    # A step of size 0 saves the head as it was drawn.
    folder = artifact_path(*(lambda plan: (plan, train(plan)))(make_plan(run="still", learning_rate=1e-30, **options)))
    model, found = classifier(folder), []
    with torch.no_grad():
        for row in rows:
            better, worse = (
                model(**tokenizer(f"{prompt(row)}{row[side]}<|im_end|>\n", return_tensors="pt")).logits[0, 0]
                for side in ("response", "rejected_response")
            )
            won = better - worse - row.get("margin", 0.0)
            found.append(-torch.log(torch.sigmoid(won)) + 0.1 * (better + worse) ** 2)
    plan = make_plan(**options)
    train(plan)
    assert losses(plan)[0] == pytest.approx(float(torch.stack(found).mean()), rel=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_the_tokens_are_those_that_supervised_training_learns(make_plan: Make, tokenizer: Any, name: str) -> None:
    from tunesmith_trainer.masks import Masker
    from tunesmith_trainer.methods import recipe
    from tunesmith_trainer.reading import read_datasets
    from tunesmith_trainer.tokens import Limit, tokenize

    plan = make_plan(rows=rows_of(name), method=METHODS[name])
    rows = read_datasets(plan.datasets, plan.method.type, 0).rows
    dataset = recipe(plan.method.type).prepare(plan, rows, tokenizer).dataset
    learned = tokenize(rows, Masker(tokenizer, "LastAssistant"), Limit(128)).table
    for row, ids, labels in zip(dataset, learned["input_ids"], learned["labels"], strict=True):
        if name == "RewardModel":
            assert row["chosen_ids"] == ids
            continue
        answer = [token for token in labels if token != -100]
        assert row["completion_ids" if name == "KTO" else "chosen_ids"] == answer
        assert row["prompt_ids"] + answer == ids[: len(row["prompt_ids"]) + len(answer)]


@pytest.mark.parametrize("name", METHODS)
def test_each_method_learns_what_is_preferred(make_plan: Make, name: str) -> None:
    plan = make_plan(rows=learned_from(name), method=METHODS[name], max_steps=24, learning_rate=1e-2, **SIX)
    folder = artifact_path(plan, train(plan))
    first, last = read_log(plan)[0]["metrics"], read_log(plan)[-1]["metrics"]
    accuracy = "accuracy" if name == "RewardModel" else "rewards/accuracies"
    if name == "KTO":
        assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
        assert last["rewards/margins"] > 0.5
    else:
        assert first[accuracy] < 0.9
        assert last[accuracy] == 1.0
    assert read_log(plan)[-1]["tokens_per_second"] > 0
    assert (folder / "adapter_model.safetensors").is_file()
    assert (folder / "head.json").is_file() == (name == "RewardModel")


@pytest.mark.parametrize(("name", "tuner"), [
    *((name, tuner) for name in ("KTO", "CPO", "RewardModel") for tuner in ("Full", "QLoRA")),
])  # fmt: skip
def test_tuners(make_plan: Make, name: str, tuner: str) -> None:
    plan = make_plan(
        rows=rows_of(name), method=METHODS[name], tuner=TUNERS[tuner], max_steps=6, learning_rate=5e-3, **SIX
    )
    ending = train(plan)
    assert losses(plan)[-1] < losses(plan)[0]
    assert ending.artifact
    assert ending.artifact.kind == ("models" if tuner == "Full" else "adapters")
    if name == "RewardModel" and tuner == "Full":
        config = json.loads((artifact_path(plan, ending) / "config.json").read_text())
        assert config["architectures"] == ["Qwen2ForSequenceClassification"]
        assert len(config["id2label"]) == 1


def test_a_reward_adapter_keeps_its_head(make_plan: Make, tiny: Path, tokenizer: Any) -> None:
    """Base, adapter and head score as the trained model did: the better answer wins."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    plan = make_plan(rows=PAIRS, method=METHODS["RewardModel"], max_steps=12, learning_rate=1e-2, **SIX)
    folder = artifact_path(plan, train(plan))
    head = json.loads((folder / "head.json").read_text())
    blank = AutoModelForSequenceClassification.from_pretrained(
        tiny, num_labels=len(head["id2label"]), pad_token_id=head["pad_token_id"]
    )
    model = PeftModel.from_pretrained(blank, folder)
    with torch.no_grad():
        for row in PAIRS:
            better, worse = (
                model(**tokenizer(f"{prompt(row)}{row[side]}<|im_end|>\n", return_tensors="pt")).logits[0, 0]
                for side in ("response", "rejected_response")
            )
            assert better > worse


SPREAD = {"max_steps": 3, "global_batch_size": 4, "scheduler": "Linear", "checkpoint": {"every_steps": 9}}


@pytest.mark.parametrize(
    ("name", "tuner", "strategy"),
    [
        ("KTO", "LoRA", "DDP"), ("ORPO", "LoRA", "ZeRO2"), ("RewardModel", "LoRA", "DDP"),
        *long(
            ("DPO", "Full", "DDP"), ("DPO", "LoRA", "ZeRO2"), ("DPO", "Full", "ZeRO2"), ("CPO", "LoRA", "DDP"),
            ("SimPO", "Full", "DDP"),
        ),
    ],
)  # fmt: skip
def test_two_processes_learn_what_one_does(
    make_plan: Make, tmp_path: Path, name: str, tuner: str, strategy: str
) -> None:
    options = {"rows": rows_of(name), "method": METHODS[name], "tuner": TUNERS[tuner], **SPREAD}
    alone = make_plan(run="alone", micro_batch_size=4, **options)
    train(alone)
    plan = over(make_plan(run="spread", processes=2, micro_batch_size=2, **options), strategy)
    processes.run(plan, tmp_path)
    assert losses(plan) == pytest.approx(losses(alone), rel=2e-5)
    norms = [[line["grad_norm"] for line in read_log(one)] for one in (plan, alone)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.parametrize("name", ["DPO", "CPO"])
def test_micro_batches_change_nothing(make_plan: Make, name: str) -> None:
    for run, size in (("whole", 4), ("parts", 1)):
        train(make_plan(run=run, rows=PAIRS, method=METHODS[name], micro_batch_size=size, max_steps=2))
    whole, parts = (read_log(make_plan(run=run)) for run in ("whole", "parts"))
    for one, two in zip(whole, parts, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4)


@pytest.mark.parametrize(
    ("name", "tuner"), [("DPO", "LoRA"), ("KTO", "LoRA"), *long(("DPO", "Full"), ("SimPO", "LoRA"))]
)
def test_a_resumed_run_is_the_uninterrupted_one(
    make_plan: Make, monkeypatch: pytest.MonkeyPatch, name: str, tuner: str
) -> None:
    options = {"rows": rows_of(name), "method": METHODS[name], "tuner": TUNERS[tuner], "max_steps": 5,
               "micro_batch_size": 2, "checkpoint": {"every_steps": 2, "keep": 2}}  # fmt: skip
    whole, plan = (make_plan(run=run, **options) for run in ("whole", "broken"))
    expected = train(whole)
    with monkeypatch.context() as patch:
        Stop(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted, match="at step 3"):
            train(plan)
    found = train(plan.model_copy(update={"attempt": 2}))
    kept = ("step", "epoch", "loss", "grad_norm", "metrics")
    assert [[line[key] for key in kept] for line in read_log(plan)] == [
        [line[key] for key in kept] for line in read_log(whole)
    ]
    assert found.artifact
    assert expected.artifact
    assert found.artifact.digest == expected.artifact.digest


def test_rows_that_are_too_long_are_left_out(make_plan: Make, tokenizer: Any) -> None:
    from trainer.test_training import make_trainer

    rows = [*PAIRS, {"query": "x " * 200, "response": "a", "rejected_response": "b"}]
    assert len(make_trainer(make_plan(rows=rows, method=METHODS["DPO"])).train_dataset) == len(PAIRS)
    with pytest.raises(DataError, match=r"no answer is left of 1 rows within spec\.training\.maxLength 128"):
        train(make_plan(rows=rows[-1:], method=METHODS["DPO"]))
