"""Strategies: ZeRO 1 to 3 by DeepSpeed's real engine, over two processes, against one process without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer import processes
from trainer.support import ROWS, artifact_path, long, losses, read_log
from tunesmith.training.plan import DistributionPlan, TrainPlan
from tunesmith.training.report import Ending
from tunesmith_trainer import strategy
from tunesmith_trainer.errors import ConfigError
from tunesmith_trainer.train import train

pytestmark = pytest.mark.trainer

Make = Callable[..., TrainPlan]

# 10 rows in steps of 8: the second and the fourth are filled up.
OPTIONS: dict[str, Any] = {
    "rows": (ROWS * 3)[:10], "max_steps": 4, "global_batch_size": 8, "micro_batch_size": 2, "checkpoint":
    {"every_steps": 9}, "weight_decay": 0.1, "scheduler": "Linear",
}  # fmt: skip
TUNERS: dict[str, dict[str, Any]] = {
    "Full": {"type": "Full"},
    "LoRA": {"type": "LoRA", "rank": 4, "alpha": 16, "dropout": 0.0},
    "Int8": {"type": "QLoRA", "rank": 4, "alpha": 16, "dropout": 0.0, "quantization": "Int8"},
    "DoRA": {"type": "LoRA", "rank": 4, "alpha": 16, "dropout": 0.0, "dora": True},
    "OFT": {"type": "PEFT", "peft": {"type": "OFT"}},
    "QLoRA": {"type": "QLoRA", "rank": 4, "alpha": 16, "dropout": 0.0, "quantization": "NF4"},
}


def over(plan: TrainPlan, name: str, offload: str = "None") -> TrainPlan:
    """`plan` with another strategy."""
    asked = DistributionPlan.model_validate({"strategy": name, "offload": offload})
    return plan.model_copy(update={"distribution": asked})


@pytest.fixture(scope="session")
def alone() -> dict[str, tuple[TrainPlan, Ending]]:
    """By tuner, what one process does without a strategy."""
    return {}


def weights(plan: TrainPlan, ending: Ending | None) -> dict[str, Any]:
    """The tensors of an artefact."""
    from safetensors.torch import load_file

    assert ending
    [file] = artifact_path(plan, ending).glob("*.safetensors")
    return load_file(file)


CASES = [
    ("Full", "DDP", "None", 2), ("Full", "ZeRO2", "Optimizer", 2), ("Full", "ZeRO3", "All", 2),
    ("LoRA", "FSDP2", "None", 2), ("QLoRA", "FSDP2", "None", 2), ("QLoRA", "ZeRO3", "None", 2),
    ("DoRA", "ZeRO3", "None", 2), ("LoRA", "ZeRO2", "None", 1),
    *long(
        ("Full", "ZeRO1", "None", 2), ("Full", "FSDP2", "None", 2), ("Full", "ZeRO3", "None", 2),
        ("Full", "ZeRO3", "None", 1), ("LoRA", "ZeRO1", "None", 2), ("LoRA", "ZeRO2", "None", 2),
        ("LoRA", "ZeRO3", "None", 2), ("QLoRA", "ZeRO1", "None", 2), ("Int8", "ZeRO2", "None", 2),
        ("QLoRA", "ZeRO3", "All", 2), ("OFT", "ZeRO2", "None", 2),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("tuner", "name", "offload", "count"), CASES)
def test_each_strategy_learns_what_one_process_does(
    make_plan: Make,
    tmp_path: Path,
    alone: dict[str, tuple[TrainPlan, Ending]],
    tuner: str,
    name: str,
    offload: str,
    count: int,
) -> None:
    import torch

    if tuner not in alone:
        plain = make_plan(run="plain", tuner=TUNERS[tuner], **OPTIONS)
        alone[tuner] = plain, train(plain)
    plain, expected = alone[tuner]
    plan = over(make_plan(run="spread", tuner=TUNERS[tuner], processes=count, **OPTIONS), name, offload)
    ranks = processes.run(plan, tmp_path)
    assert losses(plan) == pytest.approx(losses(plain), rel=1e-5)
    assert [line["grad_norm"] for line in read_log(plan)] == pytest.approx(
        [line["grad_norm"] for line in read_log(plain)], rel=1e-4
    )
    assert [line["learning_rate"] for line in read_log(plan)] == [line["learning_rate"] for line in read_log(plain)]
    wanted, found = weights(plain, expected), weights(plan, ranks[0].ending())
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in wanted.items()}
    for key, tensor in wanted.items():
        # Adam divides by the size of the gradient: where it is nearly 0, rounding may decide its direction.
        assert ((tensor - found[key]).abs() < 1e-4).float().mean() > 0.99, key
        assert torch.isfinite(found[key]).all()


@pytest.mark.parametrize(("tuner", "name"), [("Full", "ZeRO2"), ("LoRA", "ZeRO3"), ("Full", "FSDP2")])
def test_what_is_split_computes_in_bfloat16_what_float32_gives_to_its_precision(
    make_plan: Make, tmp_path: Path, alone: dict[str, tuple[TrainPlan, Ending]], tuner: str, name: str
) -> None:
    """Whose steps are 1/128, with activations computed anew. DeepSpeed holds float32 weights in its optimizer; FSDP2
    holds no others, and gathers them in bfloat16.
    """
    import torch

    plan = over(
        make_plan(tuner=TUNERS[tuner], processes=2, dtype="BFloat16", gradient_checkpointing=True, **OPTIONS), name
    )
    ranks = processes.run(plan, tmp_path)
    assert losses(plan) == pytest.approx(losses(alone[tuner][0]), rel=1 / 128)
    assert losses(plan) != pytest.approx(losses(alone[tuner][0]), rel=1e-5)
    wanted = torch.float32 if tuner == "Full" else torch.bfloat16  # the base's own, and what is trained
    assert {tensor.dtype for tensor in weights(plan, ranks[0].ending()).values()} == {wanted}


def report_parts(path: str) -> None:
    """Write down what the processes hold, once the engine is made."""
    from tunesmith_trainer import strategy

    check = strategy.check_engine

    def checked(wrapped: Any, plan: TrainPlan) -> None:
        check(wrapped, plan)
        stage = strategy.STAGES[plan.distribution.strategy]
        parts = strategy.held(wrapped, stage) if stage else strategy.held_by_fsdp(wrapped)
        Path(path).write_text("{} {}".format(*parts))

    strategy.check_engine = checked


@pytest.mark.parametrize("name", ["ZeRO1", "ZeRO3", "FSDP2"])
def test_a_process_holds_its_part_only(make_plan: Make, tmp_path: Path, name: str) -> None:
    plan = over(make_plan(tuner=TUNERS["Full"], processes=2, **OPTIONS | {"max_steps": 1}), name)
    processes.run(plan, tmp_path, report_parts, (str(tmp_path / "held"),))
    whole, own = map(int, (tmp_path / "held").read_text().split())
    assert whole == 97_600
    assert own == pytest.approx(whole / 2, rel=0.01)


def plain_instead(*_: Any) -> None:
    """As accelerate does when it is told to use CPUs: DDP, without a word."""
    strategy.arguments = lambda plan, cuda: {"use_cpu": True, "ddp_backend": "gloo"}  # type: ignore[assignment]
    strategy._begin_deepspeed = lambda cuda: None
    strategy._begin_fsdp_on_cpu = lambda: None


@pytest.mark.parametrize("name", ["ZeRO2", "FSDP2"])
def test_ddp_in_place_of_what_was_asked_for_is_refused(make_plan: Make, tmp_path: Path, name: str) -> None:
    plan = over(make_plan(processes=2, **OPTIONS), name)
    ranks = processes.start(plan, tmp_path, plain_instead)
    assert processes.wait(ranks) == [64, 64]
    ending = ranks[0].ending()
    assert ending
    assert f"spec.distribution.strategy: {name}, but the model is a DistributedDataParallel" in ending.message


@pytest.mark.parametrize(
    ("name", "offload", "message"),
    [
        ("FSDP2", "All", "strategy FSDP2 keeps all on the device: use ZeRO1"),
        ("DDP", "Optimizer", "strategy DDP keeps all on the device: use ZeRO1"),
        ("ZeRO2", "All", "ZeRO2 does not split: use strategy ZeRO3"),
    ],
)
def test_offloads_that_no_strategy_does_are_refused(make_plan: Make, name: str, offload: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train(over(make_plan(), name, offload))


def test_fsdp_in_one_process_is_refused(make_plan: Make) -> None:
    with pytest.raises(ConfigError, match="FSDP2 shares the weights out among processes, and there is one: use DDP"):
        train(over(make_plan(), "FSDP2"))


def test_each_row_comes_once_in_an_epoch_and_steps_are_full() -> None:
    from tunesmith_trainer.order import Order

    order = Order(rows=10, batch=4, seed=3)
    first = list(order)
    assert len(first) == len(order) == 12
    assert sorted(first[:10]) == list(range(10))
    assert first[10:] == first[:2]
    assert list(order) == first
    order.epoch = 1
    assert list(order) != first
    assert list(Order(rows=3, batch=8, seed=0))[:6] == list(Order(rows=3, batch=8, seed=0))[:3] * 2


def test_rows_of_a_step_make_micro_batches_by_their_lengths_and_no_step_gets_others() -> None:
    from tunesmith_trainer.order import Order

    lengths = [(7 * number) % 100 for number in range(100)]
    plain, sorted_ = (list(Order(100, batch=20, seed=1, micro=4, lengths=one)) for one in (None, lengths))
    steps = [slice(start, start + 20) for start in range(0, 100, 20)]
    assert [sorted(plain[step]) for step in steps] == [sorted(sorted_[step]) for step in steps]
    assert plain != sorted_
    for step in steps:
        assert [lengths[row] for row in sorted_[step]] == sorted((lengths[row] for row in plain[step]), reverse=True)
