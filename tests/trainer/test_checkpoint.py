"""A checkpoint counts only when it is whole, and only while no later attempt has begun."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer import processes
from trainer.support import ROWS, losses, read_log
from tunesmith.training.plan import TrainPlan
from tunesmith_trainer.checkpoint import MANIFEST, Checkpoints, step_of
from tunesmith_trainer.errors import Superseded
from tunesmith_trainer.fencing import FILE, Fence
from tunesmith_trainer.train import train

pytestmark = pytest.mark.trainer

Make = Callable[..., TrainPlan]

OPTIONS: dict[str, Any] = {
    "rows": ROWS * 3, "max_steps": 6, "micro_batch_size": 2, "checkpoint": {"every_steps": 2, "keep": 2},
    "tuner": {"type": "LoRA", "rank": 4, "alpha": 16, "dropout": 0.2},
}  # fmt: skip


def write(checkpoints: Checkpoints, step: int) -> Path:
    """A checkpoint of two files."""
    checkpoints.draft()
    folder = checkpoints.staging / f"checkpoint-{step}"
    (folder / "sub").mkdir(parents=True)
    (folder / "state.pt").write_bytes(bytes(range(256)) * 40)
    (folder / "sub" / "rng").write_text("x")
    checkpoints.seal(step)
    checkpoints.publish(step)
    return checkpoints.folder / f"checkpoint-{step}"


def make(folder: Path, keep: int = 2, attempt: int = 1, world_size: int = 1, strategy: str = "DDP") -> Checkpoints:
    """The checkpoints in `folder`."""
    return Checkpoints(folder, keep, attempt, world_size, strategy)


def steps(folder: Path) -> list[int]:
    """Of the checkpoints that lie in `folder`."""
    return sorted(step_of(path) for path in folder.glob("checkpoint-*"))


def flip(path: Path) -> None:
    """Alter one bit, and no size."""
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda c: flip(c / "state.pt"), "state.pt was altered"),
        (lambda c: (c / "state.pt").write_bytes(b"x" * 100), "state.pt has 100 bytes, not 10240"),
        (lambda c: (c / "sub" / "rng").unlink(), "sub/rng is missing"),
        (lambda c: (c / MANIFEST).unlink(), f"it has no {MANIFEST}"),
        (lambda c: (c / MANIFEST).write_text((c / MANIFEST).read_text()[:50]), f"its {MANIFEST} cannot be read"),
        (lambda c: (shutil.rmtree(c), shutil.copytree(c.with_name("checkpoint-2"), c)), "it is of step 2"),
    ],
)
def test_a_broken_checkpoint_is_passed_over_and_the_reason_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], Any], reason: str
) -> None:
    checkpoints = make(tmp_path)
    first, second = write(checkpoints, 2), write(checkpoints, 4)
    assert checkpoints.newest() == second
    damage(second)
    assert make(tmp_path).newest() == first
    assert f"checkpoint-4 is not used: {reason}" in capsys.readouterr().out


def test_the_newest_are_kept_and_broken_ones_do_not_count(tmp_path: Path) -> None:
    checkpoints = make(tmp_path)
    for step in (2, 4, 6):
        write(checkpoints, step)
    assert steps(tmp_path) == [4, 6]
    flip(tmp_path / "checkpoint-6" / "state.pt")  # no size changes: seen only by who reads it, at the start
    later = make(tmp_path, attempt=2)
    assert later.newest() == tmp_path / "checkpoint-4"
    assert write(later, 5)
    assert steps(tmp_path) == [4, 5]
    assert not list(tmp_path.glob(".writing-*"))


def test_a_step_that_was_broken_is_written_anew(tmp_path: Path) -> None:
    checkpoints = make(tmp_path, keep=1)
    write(checkpoints, 2)
    flip(tmp_path / "checkpoint-2" / "state.pt")
    later = make(tmp_path, keep=1)
    assert later.newest() is None
    assert write(later, 2) == later.newest()
    write(later, 4)
    assert steps(tmp_path) == [4]


def test_only_what_fits_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(make(tmp_path, world_size=2, strategy="ZeRO2"), 2)
    write(make(tmp_path, world_size=4, strategy="DDP"), 4)
    zero, plain = make(tmp_path, strategy="ZeRO2"), make(tmp_path, strategy="DDP")
    assert zero.newest() == tmp_path / "checkpoint-2"
    assert "checkpoint-4 is not used: it was written by strategy DDP" in capsys.readouterr().out
    assert zero.needs_conversion(tmp_path / "checkpoint-2")
    assert not make(tmp_path, world_size=2, strategy="ZeRO2").needs_conversion(tmp_path / "checkpoint-2")
    assert plain.newest() == tmp_path / "checkpoint-4"
    assert not plain.needs_conversion(tmp_path / "checkpoint-4")
    write(make(tmp_path, keep=1, strategy="ZeRO2"), 3)
    assert steps(tmp_path) == [3, 4]


def test_an_attempt_is_fenced_off_by_a_later_one_and_by_no_other(tmp_path: Path) -> None:
    first, second, third = (Fence(tmp_path, attempt) for attempt in (1, 2, 3))
    assert first.passes()
    assert first.passes()
    assert third.passes()
    assert not second.passes()
    assert not first.passes()
    (tmp_path / FILE).write_text("2\n")  # the second began at the same moment, and wrote last
    assert third.passes()
    assert (tmp_path / FILE).read_text() == "3\n"
    assert not second.passes()


class Stop:
    """Does something after some steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int, act: Callable[[], Any]) -> None:
        from tunesmith_trainer.progress import Reporter

        before = Reporter.on_step_end

        def on_step_end(own: Reporter, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            before(own, args, state, control, **kwargs)
            if state.global_step == step:
                act()

        monkeypatch.setattr(Reporter, "on_step_end", on_step_end)


def test_a_later_attempt_stops_an_earlier_one_before_it_writes(
    make_plan: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(**OPTIONS)
    folder = Path(plan.checkpoint.path)
    with monkeypatch.context() as patch:
        Stop(patch, 3, lambda: (folder / FILE).write_text("2\n"))
        with pytest.raises(Superseded, match="attempt 1 was ended: attempt 2 has begun") as caught:
            train(plan)
    assert (caught.value.step, caught.value.checkpoint_step) == (4, 2)
    assert steps(folder) == [2]
    assert not list(folder.glob(".writing-*"))
    with pytest.raises(Superseded):
        train(plan)
    assert train(plan.model_copy(update={"attempt": 2})).checkpoint_step == 6


def test_a_later_attempt_that_begins_while_one_publishes_stops_it(
    make_plan: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunesmith_trainer import train as module

    plan = make_plan(**OPTIONS)
    finish = module.finish

    def late(*arguments: Any) -> Any:
        Path(plan.checkpoint.path, FILE).write_text("7\n")
        return finish(*arguments)

    monkeypatch.setattr(module, "finish", late)
    with pytest.raises(Superseded) as caught:
        train(plan)
    assert (caught.value.step, caught.value.checkpoint_step) == (6, 6)
    assert not Path(plan.output.path, "adapters").exists()


def test_checkpoints_lie_apart_from_logs(make_plan: Make, tmp_path: Path) -> None:
    plan = make_plan(**OPTIONS)
    other = plan.checkpoint.model_copy(update={"path": str(tmp_path / "fast" / "run"), "uri": "pvc://fast/run"})
    plan = plan.model_copy(update={"checkpoint": other})
    train(plan)
    assert steps(tmp_path / "fast" / "run") == [4, 6]
    assert {path.name for path in Path(plan.output.run).iterdir()} == {"plan.json", "logging.jsonl", "images"}


def test_minutes_go_by_the_clock(make_plan: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(**OPTIONS | {"checkpoint": {"every_minutes": 0.5 / 60, "keep": 9}})
    monkeypatch.setattr("tunesmith_trainer.stopping.time", type("Clock", (), {"monotonic": lambda: clock[0]}))
    clock = [100.0]
    ticks = iter([0.2, 0.2, 0.2, 0.1, 0.1, 0.1])
    from tunesmith_trainer.progress import Reporter

    before = Reporter.on_step_end

    def tick(*arguments: Any, **kwargs: Any) -> None:
        clock[0] += next(ticks)
        before(*arguments, **kwargs)

    monkeypatch.setattr(Reporter, "on_step_end", tick)
    train(plan)
    assert steps(Path(plan.checkpoint.path)) == [3, 6]


def exit_while_saving(number: int, code: int) -> None:
    """End the process as a kill does, when the draft of the second checkpoint has its nth file."""
    from threading import Thread

    from tunesmith_trainer.methods import supervised

    save = supervised.TRAINER._save_checkpoint

    def watch(folder: Path) -> None:
        while sum(path.is_file() for path in folder.rglob("*")) < number:
            time.sleep(0)
        os._exit(code)

    def dying(self: Any, *arguments: Any) -> None:
        if self.state.global_step == 4:
            Thread(target=watch, args=(self.checkpoints.staging,), daemon=True).start()
        save(self, *arguments)

    supervised.TRAINER._save_checkpoint = dying  # type: ignore[method-assign]


def test_a_kill_at_any_moment_of_saving_costs_that_checkpoint_only(make_plan: Make, tmp_path: Path) -> None:
    whole = make_plan(run="whole", **OPTIONS)
    expected = train(whole).artifact
    for number in (1, 6, 10):
        plan = make_plan(run=f"killed-{number}", **OPTIONS)
        [rank] = processes.start(plan, tmp_path, exit_while_saving, (number, 9))
        assert processes.wait([rank]) == [9], rank.output()
        assert rank.ending() is None
        assert steps(Path(plan.checkpoint.path)) in ([2], [2, 4])  # 4: killed after it was moved into place
        begun = make(Path(plan.checkpoint.path)).newest()
        assert begun
        found = train(plan.model_copy(update={"attempt": 2}))
        assert found.artifact
        assert expected
        assert found.artifact.digest == expected.digest
        assert losses(plan) == losses(whole)
        assert [line["step"] for line in read_log(plan)] == [1, 2, 3, 4, 5, 6]
        assert not list(Path(plan.checkpoint.path).glob(".writing-*"))
