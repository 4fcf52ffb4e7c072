"""GRPO and PPO: what is computed against plain torch, and runs over each tuner and two processes."""

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
from trainer.support import artifact_path, long, read_log
from trainer.test_checkpoint import Stop
from trainer.test_resume import act_after
from trainer.test_strategy import over
from trainer.test_training import make_trainer
from tunesmith.api.finetunejob import FineTuneJobSpec
from tunesmith.training.matrix import PlanError, refuse
from tunesmith.training.plan import Place, TrainPlan
from tunesmith_trainer.errors import DataError, Interrupted
from tunesmith_trainer.train import train

pytestmark = pytest.mark.trainer

Make = Callable[..., TrainPlan]

ROWS = [{"query": f"{word} {number}"} for number, word in enumerate(["who", "what", "hello", "tell"])]
TUNERS: dict[str, dict[str, Any]] = {
    "Full": {"type": "Full"},
    "LoRA": {"type": "LoRA", "rank": 4, "alpha": 16, "dropout": 0.05},
    "QLoRA": {"type": "QLoRA", "rank": 4, "alpha": 16, "dropout": 0.0, "quantization": "NF4"},
}
LETTER = """
def letters(completions, **columns):
    return [text.count("e") / 4 for text in completions]
def prompts_seen(completions, prompts, **columns):
    with open({path!r}, "a") as file:
        file.write("".join(repr(pair) + chr(10) for pair in zip(prompts, completions)))
    return [0.0] * len(prompts)
"""


def method(folder: Path, type_: str = "GRPO", more: list[dict[str, Any]] | None = None, **options: Any) -> Any:
    """A method with the letter's frequency as its reward, in answers of 8 tokens."""
    code = folder / "mine.py"
    code.write_text(LETTER.format(path=str(folder / "seen")))
    reward = {"type": "Python", "python": {"uri": f"file://{code}", "function": "letters"}}
    policy = {"rewards": [reward, *(more or [])], "rollout": {"maxCompletionLength": 8}} | options
    if type_ == "GRPO":
        policy = {"numGenerations": 4} | policy
    return {"type": type_, type_.lower(): policy}


def seen(folder: Path) -> dict[str, Any]:
    """A reward that writes down what it saw."""
    return {"type": "Python", "python": {"uri": f"file://{folder}/mine.py", "function": "prompts_seen"}}


def history(trainer: Any, name: str) -> list[float]:
    """A value that a trainer logged, step by step."""
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def perturb(model: Any, amount: float = 0.05) -> None:
    """Move the trained weights a little, the same way each time."""
    import torch

    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += amount * torch.randn(parameter.shape, generator=generator)


def batch(trainer: Any) -> dict[str, Any]:
    """Answers to the first prompts, with their scores."""
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    rows = [trainer.train_dataset[number] for number in range(2) for _ in range(4)]
    made: dict[str, Any] = trainer._generate_and_score_completions(rows)
    return made


def answer_log_probabilities(model: Any, made: dict[str, Any], temperature: float) -> list[Any]:
    """Of each answer alone, without padding: log-probabilities of its tokens."""
    import torch

    found = []
    for number in range(len(made["prompt_ids"])):
        prompt = made["prompt_ids"][number][made["prompt_mask"][number].bool()]
        answer = made["completion_ids"][number][made["completion_mask"][number].bool()]
        logits = model(torch.cat([prompt, answer]).unsqueeze(0)).logits[0] / temperature
        chosen = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        found.append(chosen.gather(1, answer.unsqueeze(1)).squeeze(1))
    return found


@pytest.mark.parametrize("scale", ["Group", "Batch", "None"])
def test_advantages_equal_a_plain_computation(make_plan: Make, tmp_path: Path, tokenizer: Any, scale: str) -> None:
    import torch

    other = {"type": "Repetition", "weight": 2.0}
    plan = make_plan(rows=ROWS, method=method(tmp_path, more=[other], scaleRewards=scale), global_batch_size=8)
    made = batch(make_trainer(plan))
    total = []
    for ids, mask in zip(made["completion_ids"], made["completion_mask"], strict=True):
        answer = ids[mask.bool()].tolist()
        grams = [tuple(answer[at : at + 3]) for at in range(len(answer) - 2)]
        repeated = 1 - len(set(grams)) / len(grams) if grams else 0.0
        total.append(tokenizer.decode(answer, skip_special_tokens=True).count("e") / 4 - 2.0 * repeated)
    groups = torch.tensor(total).view(2, 4)
    expected = groups - groups.mean(1, keepdim=True)
    if scale != "None":
        expected = expected / ((groups.std(1, keepdim=True) if scale == "Group" else groups.std()) + 1e-4)
    assert groups.std() > 0
    torch.testing.assert_close(made["advantages"], expected.flatten())


def test_an_answer_ends_where_the_template_ends_a_turn(make_plan: Make, tmp_path: Path, tiny: Path) -> None:
    """Base models with a template have another end of text: answers would go on with the next turns."""
    folder = shutil.copytree(tiny, tmp_path / "base")
    said = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**said, "eos_token": "<|endoftext|>"}))
    (folder / "generation_config.json").unlink()
    for type_ in ("GRPO", "PPO"):
        plan = make_plan(run=type_.lower(), rows=ROWS, method=method(tmp_path, type_), global_batch_size=8)
        trainer = make_trainer(plan.model_copy(update={"model": Place(uri="x", path=str(folder))}))
        ends = trainer.generation_config.eos_token_id
        assert [trainer._tokenizer.decode([end]) for end in ends] == ["<|endoftext|>", "<|im_end|>"]
        assert trainer.eos_token_ids == ends


LOSSES = [("GRPO", "Token"), ("DAPO", "Token"), ("DrGRPO", "Token"), ("BNPO", "Token"), ("GRPO", "Sequence")]


@pytest.mark.parametrize(("loss", "level"), LOSSES)
def test_each_loss_equals_a_plain_computation(
    make_plan: Make, tmp_path: Path, tiny: Path, loss: str, level: str
) -> None:
    """With a policy that has left both the sampling one and the reference, so that ratios are clipped."""
    import torch
    from transformers import AutoModelForCausalLM

    options = {"loss": loss, "importanceSampling": level, "beta": 0.3, "epsilon": 0.05, "epsilonHigh": 0.1}
    rollout = {"maxCompletionLength": 8, "temperature": 0.7}
    plan = make_plan(rows=ROWS, method=method(tmp_path, rollout=rollout, iterations=2, **options),
                     global_batch_size=8, micro_batch_size=8, tuner=TUNERS["Full"])  # fmt: skip
    trainer = make_trainer(plan)
    made = batch(trainer)
    perturb(trainer.model, 0.01)
    with torch.no_grad():
        found = trainer._compute_loss(trainer.model, made)
        base = AutoModelForCausalLM.from_pretrained(tiny)
        old = answer_log_probabilities(base, made, 0.7)
        new = answer_log_probabilities(trainer.model, made, 0.7)
    for given, expected, mask in zip(made["old_per_token_logps"], old, made["completion_mask"], strict=True):
        torch.testing.assert_close(given[mask.bool()], expected, atol=1e-4, rtol=1e-4)
    tokens, clipped = [], 0
    for now, before, advantage in zip(new, old, made["advantages"], strict=True):
        ratio = (now - before).mean().exp() if level == "Sequence" else (now - before).exp()
        clipped += int(((ratio < 0.95) | (ratio > 1.1)).sum())
        surrogate = torch.minimum(ratio * advantage, ratio.clamp(0.95, 1.1) * advantage)
        divergence = (before - now).exp() - (before - now) - 1  # the sampling policy is the reference here
        tokens.append(-surrogate + 0.3 * divergence * (ratio if level == "Token" else 1))
    assert clipped
    every = torch.cat(tokens)
    expected = {
        "GRPO": torch.stack([one.mean() for one in tokens]).mean(), "DAPO": every.mean(), "BNPO": every.mean(),
        "DrGRPO": every.sum() / (8 * 8),
    }[loss]  # fmt: skip
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_tokens_of_the_global_batch_count_alike_or_those_of_a_micro_batch(make_plan: Make, tmp_path: Path) -> None:
    """DAPO's gradient does not depend on the micro-batches; BNPO's does, where answers are of unequal length."""
    norms = {}
    for loss in ("DAPO", "BNPO"):
        for micro in (2, 8):
            plan = make_plan(run=f"{loss}-{micro}", rows=ROWS, method=method(tmp_path, loss=loss),
                             global_batch_size=8, micro_batch_size=micro, tuner=TUNERS["Full"])  # fmt: skip
            trainer = make_trainer(plan)
            original = trainer._generate_single_turn

            def shorter(*arguments: Any, original: Any = original, **options: Any) -> Any:
                made, extra = original(*arguments, **options)
                return [ids[: 1 + number] for number, ids in enumerate(made)], extra

            trainer._generate_single_turn = shorter
            trainer.train()
            norms[loss, micro] = history(trainer, "grad_norm")[0]
    assert norms["DAPO", 2] == pytest.approx(norms["DAPO", 8], rel=1e-4)
    assert norms["BNPO", 2] != pytest.approx(norms["BNPO", 8], rel=1e-2)


def test_the_order_of_prompts() -> None:
    from tunesmith_trainer.order import Order
    from tunesmith_trainer.rollouts import Groups

    groups, order = Groups(rows=5, prompts=2, seed=3, answers=2, parts=2, passes=3), Order(5, 2, 3)
    groups.epoch = order.epoch = 4
    found, wanted = list(groups), list(order)
    assert len(found) == len(groups) == 3 * 4 * 6
    assert groups.steps == 9
    for number in range(3):
        first, second = wanted[2 * number : 2 * number + 2]
        assert found[24 * number : 24 * number + 24] == [first, first, second, second] * 6


def read_seen(folder: Path) -> list[str]:
    """What `prompts_seen` wrote down, once."""
    lines = (folder / "seen").read_text().splitlines()
    (folder / "seen").unlink()
    return lines


RESUMED = [
    ("GRPO", {"iterations": 2, "beta": 0.1}, 5), ("PPO", {"iterations": 3}, 4), *long(("GRPO", {"iterations": 1}, 3)),
]  # fmt: skip


@pytest.mark.parametrize(("type_", "options", "stop"), RESUMED)
def test_a_resumed_run_asks_and_answers_as_the_uninterrupted_one(
    make_plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, type_: str, options: dict[str, Any], stop: int
) -> None:
    """The same prompts, the same answers and the same weights, also between two passes over one set of answers."""
    how = method(tmp_path, type_, **options)
    how[type_.lower()]["rewards"].append(seen(tmp_path))
    settings: dict[str, Any] = {"max_steps": 7, "global_batch_size": 8, "micro_batch_size": 4, "tuner": TUNERS["LoRA"]}
    rows = [*ROWS, {"query": "five"}]
    whole, plan = (make_plan(run=run, rows=rows, method=how, **settings) for run in ("whole", "broken"))
    expected = train(whole).artifact
    wanted = read_seen(tmp_path)
    with monkeypatch.context() as patch:
        Stop(patch, stop, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted, match=f"at step {stop}, after a checkpoint of it"):
            train(plan)
    found = train(plan.model_copy(update={"attempt": 2})).artifact
    assert read_seen(tmp_path) == wanted
    assert len(wanted) == 8 * -(-7 // options["iterations"])
    assert found
    assert expected
    assert found.digest == expected.digest


def test_generalised_advantages_equal_a_plain_loop() -> None:
    import torch
    from tunesmith_trainer.methods.ppo import advantages

    torch.manual_seed(0)
    rewards, values = torch.randn(3, 6), torch.randn(3, 6)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] + [0] * 5])
    found = advantages(rewards * mask, values * mask, mask, 0.9, 0.8)
    for row, length in enumerate((6, 4, 1)):
        for begin in range(length):
            expected = 0.0
            for at in range(begin, length):
                following = float(values[row, at + 1]) if at + 1 < length else 0.0
                delta = float(rewards[row, at]) + 0.9 * following - float(values[row, at])
                expected += (0.9 * 0.8) ** (at - begin) * delta
            assert float(found[row, begin]) == pytest.approx(expected, abs=1e-5)
        assert not found[row, length:].any()


def test_without_value_and_divergence_ppo_is_reinforce(make_plan: Make, tmp_path: Path, tiny: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    how = method(tmp_path, "PPO", klWeight=0, discount=1, gaeLambda=1, valueWeight=0, iterations=1)
    plan = make_plan(rows=ROWS, method=how, global_batch_size=8, micro_batch_size=8, tuner=TUNERS["Full"])
    trainer = make_trainer(plan)
    made = batch(trainer)
    trainer._compute_loss(trainer.model, made).backward()
    model = AutoModelForCausalLM.from_pretrained(tiny)
    worth = trainer.terminal
    assert worth.std() > 0
    likelihoods = answer_log_probabilities(model, made, 1.0)
    total = sum((reward * one.sum() for reward, one in zip(worth, likelihoods, strict=True)), torch.tensor(0.0))
    (-total / made["completion_mask"].sum()).backward()
    expected = dict(model.named_parameters())
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-5, rtol=1e-3)


def test_the_reference_costs_by_token_and_the_value_is_clipped(make_plan: Make, tmp_path: Path, tiny: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    how = method(tmp_path, "PPO", klWeight=0.5, discount=0.9, gaeLambda=0.8, valueEpsilon=0.1, valueWeight=2)
    plan = make_plan(rows=ROWS, method=how, global_batch_size=8, micro_batch_size=8, tuner=TUNERS["Full"])
    trainer = make_trainer(plan)
    perturb(trainer.model, 0.02)
    torch.nn.init.normal_(trainer.head.weight)
    made = batch(trainer)
    with torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(tiny)
        away = zip(*(answer_log_probabilities(model, made, 1.0) for model in (trainer.model, base)), strict=True)
        states = trainer.model.base_model(
            torch.cat([made["prompt_ids"], made["completion_ids"]], 1),
            attention_mask=torch.cat([made["prompt_mask"], made["completion_mask"]], 1),
        ).last_hidden_state
    count = made["completion_ids"].shape[1]
    values = trainer.head(states[:, -count - 1 : -1]).squeeze(-1).detach()
    for row, (now, before) in enumerate(away):
        length = len(now)
        following = worth = 0.0
        for at in reversed(range(length)):
            reward = -0.5 * float(now[at] - before[at]) + (float(trainer.terminal[row]) if at == length - 1 else 0)
            delta = reward + 0.9 * worth - float(values[row, at])
            following, worth = delta + 0.72 * following, float(values[row, at])
            assert float(made["advantages"][row, at]) == pytest.approx(following, abs=1e-3)
    mask = made["completion_mask"]
    with torch.no_grad():
        trainer.head.bias += 0.25  # all values leave what they were by more than they may
        made["advantages"] = torch.zeros_like(made["advantages"])
        loss = float(trainer._compute_loss(trainer.model, made))
    moved = values + 0.25
    errors = torch.maximum((moved - made["returns"]) ** 2, (values + 0.1 - made["returns"]) ** 2) / 2
    assert loss == pytest.approx(2 * float((errors * mask).sum() / mask.sum()), rel=1e-3)


LEARNING: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("GRPO", {}, {"max_steps": 24, "learning_rate": 1e-2, "global_batch_size": 16}),
    (
        "GRPO",
        {"loss": "GRPO", "importanceSampling": "Sequence"},
        {"max_steps": 24, "learning_rate": 1e-2, "global_batch_size": 16},
    ),
    ("PPO", {"iterations": 2, "klWeight": 0.001}, {"max_steps": 36, "learning_rate": 2e-2, "global_batch_size": 32}),
]


@pytest.mark.parametrize(("type_", "options", "training"), LEARNING)
def test_it_learns_to_write_a_letter(
    make_plan: Make, tmp_path: Path, type_: str, options: dict[str, Any], training: dict[str, Any]
) -> None:
    training = training | {"micro_batch_size": training["global_batch_size"]}
    trainer = make_trainer(make_plan(rows=ROWS, method=method(tmp_path, type_, **options), **training))
    trainer.train()
    found = history(trainer, "reward")
    assert sum(found[:2]) / 2 < 0.4
    assert sum(found[-4:]) / 4 > 0.8


def test_what_is_logged(make_plan: Make, tmp_path: Path) -> None:
    """Each reward, their weighted sum, lengths, the divergence, clipping; also in steps that sample nothing."""
    more = [{"type": "Repetition", "weight": 2}]
    for type_ in ("GRPO", "PPO"):
        weight = {"beta": 0.1} if type_ == "GRPO" else {"klWeight": 0.1}
        how = method(tmp_path, type_, more, iterations=2, **weight)
        plan = make_plan(run=type_.lower(), rows=ROWS, method=how, max_steps=3, global_batch_size=8)
        train(plan)
        lines = read_log(plan)
        found = lines[0]["metrics"]
        total = found["rewards/letters/mean"] + 2 * found["rewards/repetition/mean"]
        assert found["reward"] == pytest.approx(total)
        assert 1 <= found["completions/mean_length"] <= 8
        assert found["kl"] == pytest.approx(0, abs=1e-4)
        assert found["clip_ratio/region_mean"] == 0
        assert ("value_loss" in found) == (type_ == "PPO")
        assert "reward" not in lines[1]["metrics"]
        assert lines[0]["tokens_per_second"] > 0


@pytest.mark.parametrize("tuner", ["Full", "LoRA", "QLoRA"])
@pytest.mark.parametrize("type_", ["GRPO", "PPO"])
def test_each_tuner(make_plan: Make, tmp_path: Path, type_: str, tuner: str) -> None:
    """Nothing but the policy is in the artefact."""
    how = method(tmp_path, type_, iterations=2, **({"beta": 0.1} if type_ == "GRPO" else {}))
    plan = make_plan(rows=ROWS, method=how, max_steps=3, global_batch_size=8, tuner=TUNERS[tuner],
                     gradient_checkpointing=tuner == "LoRA", checkpoint={"every_steps": 2})  # fmt: skip
    folder = artifact_path(plan, train(plan))
    weights = "model.safetensors" if tuner == "Full" else "adapter_model.safetensors"
    assert [path.name for path in folder.rglob("*.safetensors")] == [weights]
    assert ("value.pt" in {path.name for path in Path(plan.checkpoint.path).rglob("*")}) == (type_ == "PPO")


def queries(lines: list[str]) -> list[str]:
    """The questions that were asked."""
    return [line.split("user\\n")[1].split("<|im_end|>")[0] for line in lines]


@pytest.mark.parametrize(("type_", "tuner", "strategy"), [
    ("PPO", "LoRA", "ZeRO2"), *long(("GRPO", "Full", "ZeRO3"), ("GRPO", "QLoRA", "DDP"), ("PPO", "Full", "DDP")),
])  # fmt: skip
def test_two_processes_ask_what_one_does(
    make_plan: Make, tmp_path: Path, type_: str, tuner: str, strategy: str
) -> None:
    how = method(tmp_path, type_, iterations=2, **({"beta": 0.1} if type_ == "GRPO" else {}))
    how[type_.lower()]["rewards"].append(seen(tmp_path))
    asked = []
    for count in (1, 2):
        plan = make_plan(run=f"of-{count}", rows=[*ROWS, {"query": "five"}], method=how, max_steps=5,
                         global_batch_size=8, micro_batch_size=2, tuner=TUNERS[tuner], processes=count)  # fmt: skip
        if count == 1:
            train(plan)
        else:
            ending = processes.run(over(plan, strategy), tmp_path)[0].ending()
            assert ending
            assert ending.artifact
        asked.append(queries(read_seen(tmp_path)))
    assert [len(lines) for lines in asked] == [24, 24]
    for begin in (0, 8, 16):  # each set of answers, whichever process was first
        assert sorted(asked[0][begin : begin + 8]) == sorted(asked[1][begin : begin + 8])


def test_a_learned_value_goes_on_with_another_number_of_processes(make_plan: Make, tmp_path: Path) -> None:
    """ZeRO's checkpoint is converted for them."""
    import torch

    options = {"rows": ROWS, "method": method(tmp_path, "PPO"), "tuner": {"type": "Full"}, "max_steps": 6,
               "micro_batch_size": 2, "checkpoint": {"every_steps": 2, "keep": 2}}  # fmt: skip
    first, second = (over(make_plan(run="changed", processes=count, **options), "ZeRO2") for count in (1, 2))
    ranks = processes.start(first, tmp_path, act_after, (3, "0", signal.SIGTERM))
    assert processes.wait(ranks) == [143]
    value = torch.load(Path(first.checkpoint.path) / "checkpoint-3" / "value.pt", weights_only=True)
    assert value["head"]["weight"].abs().sum() > 0
    [again, *_] = processes.run(second.model_copy(update={"attempt": 2}), tmp_path)
    assert "resuming from checkpoint-3" in again.output()
    assert "it is converted" in again.output()
    assert [line["step"] for line in read_log(second)] == [1, 2, 3, 4, 5, 6]


def spec(type_: str, batch: int = 8, **options: Any) -> FineTuneJobSpec:
    """A job with these options."""
    policy = {"rewards": [{"type": "Format"}]} | options
    return FineTuneJobSpec.model_validate(
        {
            "model": {"uri": "pvc://models/one"},
            "datasets": [{"uri": "pvc://data/one"}],
            "method": {"type": type_, type_.lower(): policy},
            "tuner": {"type": "LoRA"},
            "training": {"globalBatchSize": batch, "microBatchSize": 1},
        }
    )


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (spec("GRPO", 12), r"globalBatchSize: .* multiple of spec.method.grpo.numGenerations: use 8 or 16, or another"),
        (spec("GRPO", 4), r"use 8, or another numGenerations"),
        (spec("PPO", 1), r"globalBatchSize: PPO learns from two answers at least"),
        (spec("GRPO", rollout={"maxCompletionLength": 9999}), r"maxLength: .*: raise it above 9999, or lower"),
        (spec("PPO", rollout={"backend": "VLLMColocate"}), r"spec.method.ppo.rollout.backend: .* needs GPUs"),
    ],
)
def test_what_cannot_be_is_refused_before_it_starts(job: FineTuneJobSpec, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        refuse(job)
    refuse(spec("GRPO"))
    refuse(spec("PPO", 2))


def test_prompts_that_leave_no_room_are_left_out(make_plan: Make, tmp_path: Path, capsys: Any) -> None:
    rows = [*ROWS, {"query": "hello " * 200}]
    train(make_plan(rows=rows, method=method(tmp_path), max_length=64))
    assert "4 prompts, " in (printed := capsys.readouterr().out)
    assert "1 left out as too long" in printed
    with pytest.raises(DataError, match=r"none of 1 prompts leaves room for an answer of maxCompletionLength 8"):
        train(make_plan(rows=rows[-1:], method=method(tmp_path), max_length=64))


def test_a_trained_reward_model_judges(make_plan: Make, tmp_path: Path) -> None:
    """What method RewardModel wrote is what a reward of type Model reads."""
    pairs = [{"prompt": f"who {number}", "chosen": "good", "rejected": "bad"} for number in range(4)]
    first = make_plan(run="judge", rows=pairs, method={"type": "RewardModel", "reward_model": {}}, tuner=TUNERS["Full"])
    judge = artifact_path(first, train(first))
    source = {"uri": "pvc://store/judge"}
    how = method(tmp_path, "GRPO", [{"type": "Model", "model": source, "weight": 0.5}])
    how["models"] = {"spec.method.grpo.rewards[1].model": {**source, "path": str(judge)}}
    plan = make_plan(rows=ROWS, method=how, global_batch_size=8)
    train(plan)
    found = read_log(plan)[0]["metrics"]
    assert found["rewards/model/mean"] != 0
    assert found["reward"] == pytest.approx(found["rewards/letters/mean"] + 0.5 * found["rewards/model/mean"], rel=1e-4)


@pytest.mark.parametrize("name", ["grpo", "ppo", "gkd"])
def test_the_examples_become_plans(name: str) -> None:
    import yaml
    from tunesmith.training.plan import Job
    from tunesmith.training.planning import train_plan

    path = Path(__file__).parents[2] / "examples" / "methods" / f"{name}.yaml"
    *_, job = yaml.safe_load_all(path.read_text())
    merged = {("MergeJob", "xiao-huang-merged"): "pvc://tunesmith-store/models/abc"}
    spec = FineTuneJobSpec.model_validate(job["spec"])
    plan = train_plan(Job(namespace="n", name="n", uid="12345678"), spec, merged, "pvc://tunesmith-store")
    assert plan.method.type == name.upper()
