"""Evaluation during training: the numbers, the best checkpoint, early stopping."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trainer import processes
from trainer.support import ROWS, artifact_path, long, losses, read_log
from trainer.test_checkpoint import Stop, steps
from trainer.test_tuners import peft
from tunesmith.api.dataset import EarlyStopping
from tunesmith.training.evaluating import METRICS, metrics_of
from tunesmith.training.plan import TrainPlan, ValidationPlan
from tunesmith_trainer.errors import ConfigError, Interrupted
from tunesmith_trainer.evaluation import Best, Evaluation, best_of, measured
from tunesmith_trainer.local.planning import plan_for, read
from tunesmith_trainer.methods.reranker import first_of
from tunesmith_trainer.order import Rounds
from tunesmith_trainer.train import train

pytestmark = pytest.mark.trainer

Make = Callable[..., TrainPlan]


def evaluated(plan: TrainPlan, rows: list[dict[str, Any]], tmp_path: Path, **more: Any) -> TrainPlan:
    """The plan with rows to evaluate on."""
    path = tmp_path / f"{plan.job.name}-validation.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept = {"datasets": [{"uri": f"configmap://data/{path.name}", "path": str(path)}], **more}
    return plan.model_copy(update={"validation": ValidationPlan.model_validate(kept)})


def evaluations(plan: TrainPlan) -> list[dict[str, Any]]:
    """The lines of a run's evaluation.jsonl."""
    return [json.loads(line) for line in (Path(plan.output.run) / "evaluation.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([], {}, None),
        ([3.0, 2.0, 1.0], {}, Best(3, 1.0, 0)),
        ([3.0, 1.0, 2.0, 1.0], {}, Best(2, 1.0, 2)),
        ([1.0, 3.0, 2.0], {"maximize": True}, Best(2, 3.0, 1)),
        ([3.0, 2.95, 2.8, 2.75], {"early_stopping": EarlyStopping(min_delta=0.1)}, Best(3, 2.8, 1)),
        ([math.nan, 2.0, math.nan], {}, Best(2, 2.0, 1)),
        ([math.nan], {}, None),
    ],
)
def test_the_best_evaluation(values: list[float], options: dict[str, Any], expected: Best | None) -> None:
    history = [{"step": step, "eval_loss": value, "eval_runtime": 9.0} for step, value in enumerate(values, 1)]
    found = measured([{"step": 1, "loss": 0.0}, *history])
    assert best_of(found, ValidationPlan(**options)) == expected


def test_a_metric_that_is_not_measured_is_refused_with_those_that_are() -> None:
    plan = ValidationPlan(metric="acuracy")
    with pytest.raises(ConfigError, match=r"spec\.validation\.metric: no 'acuracy' was measured: use one of a, loss"):
        best_of([(1, {"loss": 1.0, "a": 2.0})], plan)


def test_the_loss_is_that_of_the_rows_tokens_under_the_weights_at_hand(
    make_plan: Make, tmp_path: Path, tiny: Path, tokenizer: Any
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plan = make_plan(max_steps=2, micro_batch_size=1)
    rows = [*ROWS[1:], {"query": "hello", "response": "hello hello hello, this is a longer one"}]
    plan = evaluated(plan, rows, tmp_path, publish="Last")
    ending = train(plan)
    [line] = [one for one in evaluations(plan) if one["step"] == 2]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), artifact_path(plan, ending)).eval()
    expected = []
    for row in rows:
        asked = f"<|im_start|>user\n{row['query']}<|im_end|>\n<|im_start|>assistant\n"
        prompt = tokenizer(asked)["input_ids"]
        answer = tokenizer(f"{row['response']}<|im_end|>")["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        expected += torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="none").tolist()
    assert line["metrics"]["loss"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_an_evaluation_that_is_no_number_is_null(make_plan: Make, tmp_path: Path) -> None:
    plan = evaluated(make_plan(), ROWS, tmp_path)
    evaluation = Evaluation(plan, lambda _: None)
    evaluation.log.parent.mkdir(parents=True)
    evaluation.write([(1, {"loss": math.nan, "entropy": 0.5})])
    assert evaluation.log.read_text() == '{"step": 1, "metrics": {"loss": null, "entropy": 0.5}}\n'


# What is learned makes what is evaluated on less and less likely, from some step on.
APART: dict[str, Any] = {
    "rows": ROWS[:2] * 2, "max_steps": 10, "learning_rate": 3e-2, "micro_batch_size": 2,
    "checkpoint": {"every_steps": 3, "keep": 1},
}  # fmt: skip


@pytest.mark.parametrize("tuner", [*long(("Full",)), "LoRA"])
def test_the_best_checkpoint_outlives_newer_ones_and_a_resume_and_is_published(
    make_plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuner: str
) -> None:
    tuners = {"Full": {"type": "Full"}, "LoRA": {"type": "LoRA", "rank": 4, "alpha": 16, "dropout": 0.0}}
    kept = {"rows": ROWS[2:], "tmp_path": tmp_path, "every_steps": 1}
    options = APART | ({"learning_rate": 3e-3} if tuner == "Full" else {})
    whole, broken = (evaluated(make_plan(run=r, tuner=tuners[tuner], **options), **kept) for r in ("whole", "broken"))
    ending = train(whole)
    lines = evaluations(whole)
    best = min(lines, key=lambda line: line["metrics"]["loss"])
    assert [line["step"] for line in lines] == list(range(1, 11))
    assert best["step"] < 8, "the rows must not fit each other"
    assert f"published step {best['step']}, the best by loss" in ending.message
    assert steps(Path(whole.checkpoint.path)) == [best["step"], 10]
    name = "model.safetensors" if tuner == "Full" else "adapter_model.safetensors"
    published = load_file(artifact_path(whole, ending) / name)
    checkpoint = load_file(Path(whole.checkpoint.path) / f"checkpoint-{best['step']}" / name)
    assert published.keys() == checkpoint.keys()
    assert all(torch.equal(published[key], checkpoint[key]) for key in published)

    with monkeypatch.context() as patch:
        Stop(patch, 8, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(broken)
    assert steps(Path(broken.checkpoint.path)) == [best["step"], 8]
    resumed = train(broken.model_copy(update={"attempt": 2}))
    assert evaluations(broken) == lines
    assert resumed.artifact
    assert ending.artifact
    assert resumed.artifact.digest == ending.artifact.digest
    assert (Path(whole.output.run) / "images" / "eval_loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.filterwarnings("ignore:Adapter '")  # PEFT about modules of which no rank is left
@pytest.mark.parametrize("kind", ["AdaLoRA", "PTuning"])
def test_the_best_weights_are_published_whatever_was_made_of_later_ones(
    make_plan: Make, tmp_path: Path, tiny: Path, kind: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    options = {"tuner": peft(kind), "max_steps": 6, "learning_rate": 2e-2}
    plan = evaluated(make_plan(**options), ROWS, tmp_path, every_steps=1, maximize=True)  # the loss falls
    ending = train(plan)
    assert "published step 1, the best by loss" in ending.message
    found = []
    for folder in (artifact_path(plan, ending), Path(plan.checkpoint.path) / "checkpoint-1"):
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), str(folder)).eval()
        with torch.no_grad():
            found.append(model(input_ids=torch.tensor([[5, 17, 40, 99]])).logits)
    assert torch.equal(*found)


def test_it_stops_early(make_plan: Make, tmp_path: Path) -> None:
    plan = evaluated(make_plan(**APART), ROWS[2:], tmp_path, every_steps=1, early_stopping={"patience": 2})
    ending = train(plan)
    lines = evaluations(plan)
    best = min(lines, key=lambda line: line["metrics"]["loss"])
    assert lines[-1]["step"] == best["step"] + 2 == ending.step
    assert ending.step < 10
    assert "stopped early, after 2 evaluations without a better one" in ending.message
    assert ending.best
    assert (ending.best.step, ending.best.metric) == (best["step"], "loss")
    assert ending.best.value == pytest.approx(best["metrics"]["loss"], rel=1e-5)


def killed(*_: Any) -> None:
    """Stands in for what a process does not come to any more."""
    raise Interrupted("killed")


@pytest.mark.parametrize("early", [True, False])
def test_a_run_that_was_killed_before_it_published_makes_no_step_more(
    make_plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    """Its last step is in the middle of an epoch of three."""
    options = {**APART, "rows": ROWS[:2] * 6, "max_steps": 40 if early else 4}
    stopping = {"early_stopping": {"patience": 1, "min_delta": 1000}} if early else {}
    kept = {"rows": ROWS[2:], "tmp_path": tmp_path, "every_steps": 2, "publish": "Last", **stopping}
    whole, plan = (evaluated(make_plan(run=run, **options), **kept) for run in ("whole", "killed"))
    expected = train(whole)
    assert expected.step == 4
    with monkeypatch.context() as patch:
        patch.setattr("tunesmith_trainer.train.finish", killed)
        with pytest.raises(Interrupted):
            train(plan)
    found = train(plan.model_copy(update={"attempt": 2}))
    assert (found.step, found.message, found.best) == (expected.step, expected.message, expected.best)
    assert losses(plan) == losses(whole)
    assert found.artifact
    assert expected.artifact
    assert found.artifact.digest == expected.artifact.digest


PAIR = {"query": "who are you?", "response": "I am Xiao Huang.", "rejected_response": "Hangzhou"}
METHODS: dict[str, tuple[dict[str, Any], list[dict[str, Any]], str]] = {
    "PreTraining": ({"type": "PreTraining"}, [{"text": row["response"]} for row in ROWS], "mean_token_accuracy"),
    "SFT": ({"type": "SFT"}, ROWS, "mean_token_accuracy"),
    "DPO": ({"type": "DPO", "dpo": {}}, [PAIR] * 4, "rewards/accuracies"),
    "CPO": ({"type": "CPO", "cpo": {}}, [PAIR] * 4, "rewards/accuracies"),
    "SimPO": ({"type": "SimPO", "simpo": {}}, [PAIR] * 4, "rewards/margins"),
    "ORPO": ({"type": "ORPO", "orpo": {}}, [PAIR] * 4, "rewards/accuracies"),
    "KTO": (
        {"type": "KTO", "kto": {}},
        [{**row, "label": bool(number % 2)} for number, row in enumerate(ROWS)],
        "rewards/margins",
    ),
    "RewardModel": ({"type": "RewardModel", "reward_model": {}}, [PAIR] * 4, "accuracy"),
    "Classification": (
        {"type": "Classification", "classification": {"problem": "SingleLabel", "labels": ["a", "b"]}},
        [{"text": row["query"], "label": "ab"[number % 2]} for number, row in enumerate(ROWS)],
        "accuracy",
    ),
    "Embedding": (
        {"type": "Embedding", "embedding": {}},
        [{"query": row["query"], "positive": row["response"]} for row in ROWS],
        "recall@1",
    ),
    "Reranker": (
        {"type": "Reranker", "reranker": {}},
        [{"query": row["query"], "positive": row["response"], "negatives": ["no", "nothing"]} for row in ROWS],
        "recall@1",
    ),
}


def test_each_method_that_has_metrics_is_evaluated() -> None:
    assert METHODS.keys() == METRICS.keys()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in {"SFT", "Reranker"} else pytest.mark.long) for name in METHODS],
)
def test_each_method_is_evaluated_by_its_own_metric(make_plan: Make, tmp_path: Path, name: str) -> None:
    method, rows, metric = METHODS[name]
    plan = evaluated(make_plan(run=name, method=method, rows=rows, max_steps=2), rows, tmp_path, metric=metric)
    ending = train(plan)
    assert [line["step"] for line in evaluations(plan)] == [1, 2]
    for line in evaluations(plan):
        assert set(line["metrics"]) == set(metrics_of(plan.method))
        assert all(map(math.isfinite, line["metrics"].values()))
    assert f"the best by {metric}" in ending.message


def test_metrics_over_two_processes_are_those_of_the_rows_though_not_each_has_them(
    make_plan: Make, tmp_path: Path
) -> None:
    """A batch of one process has no negatives, and the last batch is filled up with a row that counted already."""
    method = {"type": "Reranker", "reranker": {"loss": "Pointwise"}}
    rows = [{"query": row["query"], "positive": row["response"], "negatives": ["no", "nothing"]} for row in ROWS]
    for number in (1, 3):
        del rows[number]["negatives"]
    found = {}
    for processes_ in (1, 2):
        options = {"method": method, "rows": rows, "processes": processes_, "micro_batch_size": 1, "max_steps": 2}
        plan = evaluated(make_plan(run=f"over-{processes_}", **options), rows[:3], tmp_path, metric="recall@1")
        if processes_ == 1:
            train(plan)
        else:
            processes.run(plan, tmp_path)
        found[processes_] = [
            *(line["metrics"]["recall@1"] for line in evaluations(plan)),
            *(line["metrics"]["recall@1"] for line in read_log(plan)),
        ]
    assert len(found[1]) == 4
    assert {value * 2 % 1 for value in found[1]} == {0.0}, "two rows have negatives"
    assert found[2] == found[1]


@pytest.mark.parametrize(("name", "metric"), [("RewardModel", "accuracy"), ("DPO", "rewards/accuracies")])
def test_a_last_batch_of_one_row_counts_as_one_row(make_plan: Make, tmp_path: Path, name: str, metric: str) -> None:
    """Of five pairs the last is learned the other way round."""
    turned = {**PAIR, "response": PAIR["rejected_response"], "rejected_response": PAIR["response"]}
    options = {"method": METHODS[name][0], "rows": [PAIR] * 4, "max_steps": 6, "learning_rate": 2e-2}
    plan = evaluated(make_plan(**options), [*[PAIR] * 4, turned], tmp_path)
    train(plan)
    assert evaluations(plan)[-1]["metrics"][metric] == pytest.approx(0.8)


@pytest.mark.long
def test_means_of_good_and_of_bad_answers_do_not_depend_on_the_batches(make_plan: Make, tmp_path: Path) -> None:
    """The one good answer of five is in a batch with bad ones, or in the last by itself."""
    method, rows, _ = METHODS["KTO"]
    bad = [{**row, "label": False} for row in (*ROWS, {**ROWS[0], "response": "testing of a tiny model"})]
    found = []
    for run, order in (
        ("mixed", [{**bad[0], "label": True}, *bad[1:]]),
        ("apart", [*bad[1:], {**bad[0], "label": True}]),
    ):
        plan = evaluated(make_plan(run=run, method=method, rows=rows, learning_rate=2e-2), order, tmp_path)
        train(plan)
        metrics = evaluations(plan)[-1]["metrics"]
        found.append({name: metrics[name] for name in metrics if name.startswith(("rewards/", "logps/"))})
    assert len(found[0]) == 5
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0]["rewards/margins"] == pytest.approx(found[0]["rewards/chosen"] - found[0]["rewards/rejected"])


@pytest.mark.parametrize(("rows", "size", "processes_"), [(5, 2, 2), (11, 2, 4), (8, 2, 2), (3, 4, 8), (1, 1, 3)])
def test_processes_evaluate_on_each_row_once_in_as_many_batches(rows: int, size: int, processes_: int) -> None:
    every = [Rounds(rows, size, process, processes_) for process in range(processes_)]
    assert all(one.rows == every[0].rows for one in every)
    assert sum(every[0].rows) == rows
    for number, count in enumerate(every[0].rows):
        assert len({row for one in every for row in one.batches[number]}) == count
    assert {row for one in every for batch in one.batches for row in batch} == set(range(rows))
    assert max(map(len, every[0].batches)) <= size


@pytest.mark.parametrize(
    "name",
    [*long(("KTO",), ("SFT",), ("Reranker",), ("ORPO",), ("RewardModel",), ("DPO",)), "Classification"],
)
def test_two_processes_measure_rows_that_do_not_come_out_even_as_one_does(
    make_plan: Make, tmp_path: Path, name: str
) -> None:
    """Five rows, in batches of one or two."""
    method, rows, _ = METHODS[name]
    kept = {"rows": [*rows, {**rows[0], "query": "hello world, who made you?", "text": "hello world"}][:5]}
    found = []
    for world in (1, 2):
        plan = make_plan(run=f"by-{world}", method=method, rows=rows, micro_batch_size=2, processes=world)
        plan = evaluated(plan, tmp_path=tmp_path, **kept)
        if world == 1:
            train(plan)
        else:
            processes.run(plan, tmp_path)
        found.append(evaluations(plan)[-1]["metrics"])
    left_out = {"kl", "loss"} if name == "KTO" else set()  # its divergence is that of a batch
    one, two = ({key: value for key, value in each.items() if key not in left_out} for each in found)
    assert two == pytest.approx(one, rel=2e-3, abs=1e-4)


def test_a_row_without_negatives_has_no_recall() -> None:
    scores = torch.tensor([[1.0, 0.5, 2.0], [1.0, 0.0, 0.0], [-1.0, -2.0, 0.0]])
    real = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    assert first_of(scores, real).nan_to_num(9).tolist() == [0.0, 9.0, 1.0]
    assert first_of(scores[:, :1], real[:, :1]).isnan().all()


@pytest.mark.parametrize("strategy", [*long(("DDP",), ("FSDP2",)), "ZeRO2"])
def test_two_processes_evaluate_and_publish_as_one(make_plan: Make, tmp_path: Path, strategy: str) -> None:
    kept = {"rows": ROWS[2:], "tmp_path": tmp_path, "every_steps": 1}
    options = APART | {"micro_batch_size": 1}
    alone = evaluated(make_plan(run="alone", **options), **kept)
    train(alone)
    plan = evaluated(make_plan(run=strategy, processes=2, **options), **kept)
    distribution = plan.distribution.model_copy(update={"strategy": strategy})
    ranks = processes.run(plan.model_copy(update={"distribution": distribution}), tmp_path)
    ending = ranks[0].ending()
    assert ending
    found, expected = evaluations(plan), evaluations(alone)
    assert [one["metrics"]["loss"] for one in found] == pytest.approx(
        [one["metrics"]["loss"] for one in expected], rel=2e-3
    )
    best = min(expected, key=lambda line: line["metrics"]["loss"])
    assert f"published step {best['step']}, the best by loss" in ending.message


def test_the_example_is_evaluated(tiny: Path, tmp_path: Path) -> None:
    examples = Path(__file__).parents[2] / "examples"
    shutil.copytree(tiny, tmp_path / "tunesmith-store" / "base" / "smollm2-135m-instruct")
    job = read([examples / "evaluation.yaml", examples / "quickstart" / "03-data.yaml"])
    job.resource["spec"]["training"]["maxSteps"] = 12
    plan, _ = plan_for(job, tmp_path)
    ending = train(plan)
    assert [line["step"] for line in evaluations(plan)] == [10, 12]
    assert ending.best
    assert ending.best.metric == "mean_token_accuracy"
    assert ending.best.value == pytest.approx(max(one["metrics"][ending.best.metric] for one in evaluations(plan)))
