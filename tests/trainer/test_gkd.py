"""GKD: the divergence against plain torch, on whose answers a step is, and that the student comes near the teacher."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer import processes
from trainer.support import ROWS
from trainer.test_checkpoint import Stop
from trainer.test_policy import TUNERS, history, perturb
from trainer.test_strategy import over
from trainer.test_training import make_trainer
from tunesmith.training.plan import TrainPlan
from tunesmith_trainer.errors import DataError, Interrupted, ModelError
from tunesmith_trainer.train import train

pytestmark = pytest.mark.trainer

Make = Callable[..., TrainPlan]
TEACHER = "spec.method.gkd.teacher"


@pytest.fixture(scope="module")
def teacher(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with other weights."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("teacher")
    shutil.copytree(tiny, folder, dirs_exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(tiny)
    perturb(model, 0.05)
    model.save_pretrained(folder)
    return folder


def method(teacher: Path, **options: Any) -> dict[str, Any]:
    """A method with that teacher, and answers of 8 tokens."""
    source = {"uri": "pvc://teachers/one"}
    options = {"teacher": source, "maxCompletionLength": 8} | options
    return {"type": "GKD", "gkd": options, "models": {TEACHER: {**source, "path": str(teacher)}}}


def batch(trainer: Any) -> dict[str, Any]:
    """Answers to the first prompts."""
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    made: dict[str, Any] = trainer._generate_and_score_completions([trainer.train_dataset[n] for n in range(4)])
    return made


def divergence(student: Any, teacher: Any, beta: float) -> Any:
    """Of each token, by the definition, from log-probabilities."""
    import torch

    def kl(left: Any, right: Any) -> Any:
        return (left.exp() * (left - right)).sum(-1)

    if beta == 0:
        return kl(teacher, student)
    if beta == 1:
        return kl(student, teacher)
    mixed = torch.log(beta * teacher.exp() + (1 - beta) * student.exp())
    return beta * kl(teacher, mixed) + (1 - beta) * kl(student, mixed)


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_the_divergence_equals_a_plain_computation(
    make_plan: Make, tiny: Path, teacher: Path, tokenizer: Any, beta: float, share: float
) -> None:
    """On the dataset's answers and on the student's own, at a temperature, in the loss and in its gradient."""
    import torch
    from transformers import AutoModelForCausalLM

    plan = make_plan(tuner=TUNERS["Full"], method=method(teacher, beta=beta, temperature=0.7, onPolicy=share))
    trainer = make_trainer(plan)
    made = batch(trainer)
    found = trainer.compute_loss(trainer.model, made)
    found.backward()
    own, other = (AutoModelForCausalLM.from_pretrained(path) for path in (tiny, teacher))
    every = []
    for number, row in enumerate(ROWS):
        prompt = tokenizer(f"<|im_start|>user\n{row['query']}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        answer = made["completion_ids"][number][made["completion_mask"][number].bool()].tolist()
        if share == 0:
            assert answer == tokenizer(row["response"] + "<|im_end|>")["input_ids"]
        ids = torch.tensor([prompt + answer])
        logs = [(model(ids).logits[0, len(prompt) - 1 : -1] / 0.7).log_softmax(-1) for model in (own, other)]
        every.append(divergence(logs[0], logs[1].detach(), beta))
    expected = torch.cat(every).mean()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    expected.backward()
    weights = dict(own.named_parameters())
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.grad, weights[name].grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_student_comes_near_the_teacher(make_plan: Make, teacher: Path, share: float) -> None:
    plan = make_plan(tuner=TUNERS["Full"], method=method(teacher, onPolicy=share), max_steps=32, learning_rate=5e-3)
    trainer = make_trainer(plan)
    trainer.train()
    found, drawn = history(trainer, "loss"), history(trainer, "on_policy")
    assert found[0] > 0.13
    assert sum(found[-4:]) / 4 < 0.07
    assert sum(drawn) == share * 32 if share != 0.5 else 8 < sum(drawn) < 24
    assert "completions/mean_length" in trainer.state.log_history[0]


@pytest.mark.parametrize("tuner", ["Full", "LoRA", "QLoRA"])
def test_each_tuner(make_plan: Make, teacher: Path, tuner: str) -> None:
    plan = make_plan(tuner=TUNERS[tuner], method=method(teacher), max_steps=2, gradient_checkpointing=tuner == "LoRA")
    assert train(plan).artifact


@pytest.mark.parametrize("strategy", ["DDP", "ZeRO2", "ZeRO3"])
def test_two_processes(make_plan: Make, tmp_path: Path, teacher: Path, strategy: str) -> None:
    """On the dataset's answers they compute what one does."""
    losses = []
    for count in (1, 2):
        plan = make_plan(run=f"of-{count}", tuner=TUNERS["LoRA"], method=method(teacher, onPolicy=0), max_steps=3,
                         micro_batch_size=2, processes=count)  # fmt: skip
        if count == 1:
            trainer = make_trainer(plan)
            trainer.train()
            losses.append(history(trainer, "loss"))
        else:
            processes.run(over(plan, strategy), tmp_path)
            lines = (Path(plan.output.run) / "logging.jsonl").read_text().splitlines()
            losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_resumed_run_ends_as_the_uninterrupted_one(
    make_plan: Make, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"method": method(teacher), "max_steps": 6, "micro_batch_size": 2, "rows": ROWS * 2}
    whole, plan = (make_plan(run=run, **options) for run in ("whole", "broken"))
    expected = train(whole).artifact
    with monkeypatch.context() as patch:
        Stop(patch, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(plan)
    found = train(plan.model_copy(update={"attempt": 2})).artifact
    assert found
    assert expected
    assert found.digest == expected.digest


def test_a_teacher_of_another_vocabulary_is_refused(make_plan: Make, tiny: Path, teacher: Path, tmp_path: Path) -> None:
    padded, other = tmp_path / "padded", tmp_path / "other"
    for folder in (padded, other):
        shutil.copytree(teacher, folder)
    config = json.loads((padded / "config.json").read_text())
    (padded / "config.json").write_text(json.dumps(config | {"vocab_size": 512}))
    with pytest.raises(ModelError, match=r"pvc://teachers/one must have the vocabulary of .*has 512 entries, and the"):
        train(make_plan(method=method(padded)))
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    [first, second] = [token for token in vocabulary if vocabulary[token] in (20, 21)]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"2 of \d+ tokens differ, for example .* \(teacher 2[01], student 2[01]\)"):
        train(make_plan(method=method(other)))


def test_rows_without_an_answer_need_a_student_that_answers(make_plan: Make, teacher: Path) -> None:
    rows = [{"query": "who?"}]
    with pytest.raises(DataError, match=r"row 1: no answer at its end; .* or spec.method.gkd.onPolicy 1"):
        train(make_plan(rows=rows, method=method(teacher)))
    assert train(make_plan(rows=rows, method=method(teacher, onPolicy=1))).artifact
