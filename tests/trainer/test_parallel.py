"""Processes that share rows or weights, and layers over several GPUs, against one process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest
from trainer import processes
from trainer.support import ROWS, long, losses, read_log
from trainer.test_evaluation import evaluated, evaluations
from trainer.test_resume import act_after, log
from trainer.test_strategy import OPTIONS, TUNERS, weights
from tunesmith.training.plan import DistributionPlan, TrainPlan
from tunesmith.training.report import Ending
from tunesmith_trainer import layers, sequence
from tunesmith_trainer.errors import ConfigError
from tunesmith_trainer.train import train

pytestmark = pytest.mark.trainer

Make = Callable[..., TrainPlan]


def spread(make_plan: Make, count: int, strategy: str, tuner: str, run: str = "spread", **sharing: Any) -> TrainPlan:
    """A plan over `count` processes, some of which share rows or weights."""
    options = {name: sharing.pop(name) for name in ("dtype", "gradient_checkpointing", "checkpoint") if name in sharing}
    distribution = DistributionPlan.model_validate({"strategy": strategy, **sharing})
    groups = count // distribution.sharing
    plan = make_plan(run=run, tuner=TUNERS[tuner], processes=groups, **OPTIONS | options)
    return plan.model_copy(update={"distribution": distribution, "processes_per_node": count})


@pytest.fixture(scope="module")
def alone() -> dict[str, tuple[TrainPlan, Ending]]:
    """By tuner, what one process does."""
    return {}


def norms(plan: TrainPlan) -> list[float]:
    """The gradients' norms that a run logged."""
    return [line["grad_norm"] for line in read_log(plan)]


@pytest.mark.parametrize(
    ("sharing", "tuner", "strategy", "count"),
    [
        ("sequence_parallel", "Full", "ZeRO3", 4), ("tensor_parallel", "Full", "FSDP2", 4),
        *long(
            ("sequence_parallel", "LoRA", "DDP", 4), ("sequence_parallel", "QLoRA", "DDP", 2),
            ("sequence_parallel", "Full", "ZeRO2", 2), ("sequence_parallel", "Full", "FSDP2", 2),
            ("tensor_parallel", "Full", "DDP", 2),
        ),
    ],
)  # fmt: skip
def test_processes_that_share_learn_what_one_does(
    make_plan: Make,
    tmp_path: Path,
    alone: dict[str, tuple[TrainPlan, Ending]],
    sharing: str,
    tuner: str,
    strategy: str,
    count: int,
) -> None:
    if tuner not in alone:
        plain = make_plan(run="plain", tuner=TUNERS[tuner], **OPTIONS)
        alone[tuner] = plain, train(plain)
    plain, expected = alone[tuner]
    plan = spread(make_plan, count, strategy, tuner, **{sharing: 2})
    ranks = processes.run(plan, tmp_path)
    assert losses(plan) == pytest.approx(losses(plain), rel=1e-5)
    assert norms(plan) == pytest.approx(norms(plain), rel=1e-4)
    wanted, found = weights(plain, expected), weights(plan, ranks[0].ending())
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in wanted.items()}
    for key, tensor in wanted.items():
        # Adam divides by the size of the gradient: where it is nearly 0, rounding may decide its direction.
        assert ((tensor - found[key]).abs() < 1e-4).float().mean() > 0.99, key


@pytest.mark.long
@pytest.mark.parametrize("sharing", ["sequence_parallel", "tensor_parallel"])
def test_sharing_in_bfloat16_with_activations_computed_anew(
    make_plan: Make, tmp_path: Path, alone: dict[str, tuple[TrainPlan, Ending]], sharing: str
) -> None:
    if "Full" not in alone:
        plain = make_plan(run="plain", tuner=TUNERS["Full"], **OPTIONS)
        alone["Full"] = plain, train(plain)
    plan = spread(make_plan, 2, "DDP", "Full", dtype="BFloat16", gradient_checkpointing=True, **{sharing: 2})
    processes.run(plan, tmp_path)
    assert losses(plan) == pytest.approx(losses(alone["Full"][0]), rel=1 / 128)
    assert losses(plan) != pytest.approx(losses(alone["Full"][0]), rel=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("sharing", ["sequence_parallel", "tensor_parallel"])
def test_a_run_that_shares_goes_on_where_it_was_stopped(make_plan: Make, tmp_path: Path, sharing: str) -> None:
    kept = {"every_steps": 100}
    whole, broken = (
        spread(make_plan, 2, "DDP", "Full", run=run, checkpoint=kept, **{sharing: 2}) for run in ("whole", "broken")
    )
    processes.run(whole, tmp_path)
    ranks = processes.start(broken, tmp_path, act_after, (2, "0", SIGTERM))
    processes.wait(ranks)
    assert [line["step"] for line in read_log(broken)] == [1, 2]
    processes.run(broken.model_copy(update={"attempt": 2}), tmp_path)
    assert log(broken) == log(whole)


@pytest.mark.long
def test_processes_that_share_rows_evaluate_on_whole_ones(make_plan: Make, tmp_path: Path) -> None:
    plain = evaluated(make_plan(run="plain", tuner=TUNERS["LoRA"], **OPTIONS), ROWS[:4], tmp_path)
    train(plain)
    plan = evaluated(spread(make_plan, 2, "DDP", "LoRA", sequence_parallel=2), ROWS[:4], tmp_path)
    processes.run(plan, tmp_path)
    assert losses(plan) == pytest.approx(losses(plain), rel=1e-5)
    [(step, own)], [(same, expected)] = ([tuple(e.values()) for e in evaluations(p)][-1:] for p in (plan, plain))
    assert step == same
    assert own["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def attend_to_own_parts() -> None:
    """Processes that share rows do not look at each other's part."""
    sequence.begin = lambda model, plan: None


@pytest.mark.long
def test_parts_of_a_row_that_do_not_see_each_other_would_be_noticed(make_plan: Make, tmp_path: Path) -> None:
    plain = make_plan(run="plain", tuner=TUNERS["Full"], **OPTIONS)
    train(plain)
    plan = spread(make_plan, 2, "DDP", "Full", sequence_parallel=2)
    processes.run(plan, tmp_path, attend_to_own_parts)
    assert losses(plan)[0] != pytest.approx(losses(plain)[0], rel=1e-4)


@pytest.mark.parametrize("size", [2, 3])
def test_parts_of_a_batch_are_the_whole_with_what_follows_each_token(size: int) -> None:
    import torch

    ids = torch.arange(10).view(2, 5) + 1
    whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids * 10}
    parts = [sequence.Part(lambda _: dict(whole), size, rank)([]) for rank in range(size)]
    assert {tuple(tensor.shape) for part in parts for tensor in part.values()} == {(2, -(-5 // size))}
    joined = {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}
    assert joined["input_ids"][:, :5].equal(ids)
    assert not joined["attention_mask"][:, 5:].any()
    assert joined["position_ids"].tolist() == [list(range(6))] * 2
    assert joined["shift_labels"].tolist() == [[20, 30, 40, 50, -100, -100], [70, 80, 90, 100, -100, -100]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["full_attention", "sliding_attention"]}, r"\['sliding_attention'\]: only full attention"),
        ({"sliding_window": 32, "use_sliding_window": True}, "only full attention"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "only full attention"),
        ({"num_attention_heads": 3, "num_key_value_heads": 3}, "2 does not divide the model's 3 heads"),
    ],
)
def test_models_whose_rows_cannot_be_shared_are_refused(changes: dict[str, Any], message: str) -> None:
    from types import SimpleNamespace

    values = {"num_attention_heads": 4, "num_key_value_heads": 2, **changes}
    config = SimpleNamespace(**values)
    config.get_text_config = lambda: config
    with pytest.raises(ConfigError, match=f"spec.distribution.sequenceParallel: 2.*{message}|{message}"):
        sequence.check_model(SimpleNamespace(config=config), 2)


def laid_out(make_plan: Make, processes_per_node: int, devices: int) -> TrainPlan:
    """A plan whose processes lay their layers over GPUs."""
    distribution = DistributionPlan(strategy="DeviceMap", devices=devices)
    plan: TrainPlan = make_plan()
    return plan.model_copy(update={"distribution": distribution, "processes_per_node": processes_per_node})


@pytest.mark.parametrize(("rank", "gpus", "processes_per_node"), [("0", [0, 1], 1), ("1", [2, 3], 2)])
def test_each_process_lays_its_layers_over_gpus_of_its_own(
    make_plan: Make, monkeypatch: pytest.MonkeyPatch, rank: str, gpus: list[int], processes_per_node: int
) -> None:
    import torch
    from accelerate import infer_auto_device_map, init_empty_weights
    from transformers import AutoModelForCausalLM, Qwen2Config

    for name in ("ACCELERATE_TORCH_DEVICE", "ACCELERATE_BYPASS_DEVICE_MAP"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("LOCAL_RANK", rank)
    plan = laid_out(make_plan, processes_per_node, 2)
    layers.begin(plan, 2 * processes_per_node)
    assert os.environ["ACCELERATE_TORCH_DEVICE"] == f"cuda:{gpus[0]}"
    found = layers.options(plan, dict.fromkeys(range(4), 150_000))
    assert found["device_map"] == "balanced"
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
    with init_empty_weights():
        model: Any = AutoModelForCausalLM.from_config(Qwen2Config(vocab_size=32, num_hidden_layers=4, **sizes))
    # The library's own layout within these limits: nothing is left for another GPU, the CPU or the disk.
    model.hf_device_map = infer_auto_device_map(
        model, found["max_memory"], no_split_module_classes=model._no_split_modules, dtype=torch.float32
    )
    layers.check(model, plan)
    model.hf_device_map["lm_head"] = "cpu"
    with pytest.raises(ConfigError, match=r"but layers are on .*cpu.*: the model is too small to be laid out, or too"):
        layers.check(model, plan)


@pytest.mark.parametrize(("visible", "devices"), [(0, 2), (3, 2), (1, 1)])
def test_gpus_that_are_not_there_are_not_trained_on(make_plan: Make, visible: int, devices: int) -> None:
    with pytest.raises(ConfigError, match=rf"DeviceMap, .* but {visible} GPU\(s\) are there: ask for"):
        layers.begin(laid_out(make_plan, 1, devices), visible)
