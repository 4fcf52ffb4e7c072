"""Training against independent computations, and what a run leaves behind."""

from __future__ import annotations

import errno
import json
import shutil
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer.support import ROWS, artifact_path, losses, read_log
from tunesmith import artifacts
from tunesmith.training.plan import Place, TrainPlan
from tunesmith_trainer.errors import ConfigError, DataError, LossDiverged, ModelError
from tunesmith_trainer.train import train

pytestmark = pytest.mark.trainer

Make = Callable[..., TrainPlan]

FULL = {"type": "Full"}
DROPOUT = {"type": "LoRA", "rank": 4, "alpha": 16, "dropout": 0.2}


def make_trainer(plan: TrainPlan, *callbacks: Any) -> Any:
    """The trainer of a plan, not yet run."""
    from tunesmith_trainer.build import build
    from tunesmith_trainer.checkpoint import Checkpoints
    from tunesmith_trainer.fencing import Fence
    from tunesmith_trainer.methods import recipe
    from tunesmith_trainer.model import load_tokenizer
    from tunesmith_trainer.reading import read_datasets

    rows = read_datasets(plan.datasets, plan.method.type, 0).rows
    prepared = recipe(plan.method.type).prepare(plan, rows, load_tokenizer(plan.model))
    folder = Path(plan.checkpoint.path)
    checkpoints, fence = Checkpoints(folder, 2, 1, 1, "DDP"), Fence(folder, 1)
    return build(plan, prepared, checkpoints, fence, callbacks)


def plain_loss(model: Any, tokenizer: Any, rows: list[dict[str, str]]) -> float:
    """Mean cross entropy over the answers' tokens, end-of-turn included: one row at a time, masks by hand."""
    import torch

    total, count = 0.0, 0
    for row in rows:
        head = f"<|im_start|>user\n{row['query']}<|im_end|>\n<|im_start|>assistant\n"
        prompt = tokenizer(head)["input_ids"]
        answer = tokenizer(row["response"] + "<|im_end|>")["input_ids"]
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            log_probabilities = model(ids).logits[0].log_softmax(-1)
        for position in range(len(prompt), len(prompt) + len(answer)):
            total -= float(log_probabilities[position - 1, ids[0, position]])
            count += 1
    return total / count


def test_the_first_loss_equals_a_plain_computation(make_plan: Make, tiny: Path, tokenizer: Any) -> None:
    from transformers import AutoModelForCausalLM

    plan = make_plan(tuner=FULL)
    train(plan)
    expected = plain_loss(AutoModelForCausalLM.from_pretrained(tiny), tokenizer, ROWS)
    assert losses(plan)[0] == pytest.approx(expected, rel=1e-5)


def test_the_head_scores_only_tokens_that_are_learned_with_the_same_gradients(
    make_plan: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    import trl.trainer.utils as trl

    trainer = make_trainer(make_plan(maxSteps=1, tuner=FULL))
    trainer.model.train()
    inputs = next(iter(trainer.get_train_dataloader()))
    head, scored = trl._ChunkedLogProbFunction.apply, []
    monkeypatch.setattr(
        trl._ChunkedLogProbFunction, "apply", lambda states, *rest: (scored.append(len(states)), head(states, *rest))[1]
    )

    def gradients() -> list[Any]:
        trainer.model.zero_grad()
        trainer.compute_loss(trainer.model, dict(inputs)).backward()
        return [parameter.grad.clone() for parameter in trainer.model.parameters()]

    few = gradients()
    monkeypatch.setattr(trl, "_use_triton", lambda device: False)
    torch.testing.assert_close(few, gradients())
    learned = inputs["labels"][:, 1:] != -100
    assert scored == [int(learned.sum()), learned.numel()]
    monkeypatch.undo()
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    assert not any(gradient.any() for gradient in gradients()), "of rows with nothing to learn"


def test_one_full_step_equals_adamw_by_hand(make_plan: Make, tiny: Path, tokenizer: Any) -> None:
    """The whole step: gradient of the mean over all answer tokens, clipped to norm 1, AdamW's first update."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    plan = make_plan(tuner=FULL, micro_batch_size=2)  # two micro-batches of unequal token counts
    found = load_file(artifact_path(plan, train(plan)) / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(tiny)
    total, count = torch.tensor(0.0), 0
    for row in ROWS:
        prompt = tokenizer(f"<|im_start|>user\n{row['query']}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        answer = tokenizer(row["response"] + "<|im_end|>")["input_ids"]
        ids = torch.tensor([prompt + answer])
        labels = torch.tensor([[-100] * len(prompt) + answer])
        logits = model(ids).logits
        total = total + torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum")
        count += len(answer)
    (total / count).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0).step()
    assert read_log(plan)[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    for name, tensor in model.state_dict().items():
        if name in found:
            # Adam's first update is lr * sign(gradient): only where the gradient is nearly 0 may rounding matter.
            assert ((tensor - found[name]).abs() < 1e-5).float().mean() > 0.999, name


def test_lora_learns_and_leaves_the_contract_behind(make_plan: Make, tiny: Path) -> None:
    plan = make_plan(max_steps=12, learning_rate=2e-2, logging_steps=5, checkpoint={"every_steps": 5})
    ending = train(plan)
    run, folder = Path(plan.output.run), artifact_path(plan, ending)
    assert [line["step"] for line in read_log(plan)] == [1, 5, 10, 12]
    assert losses(plan)[-1] < losses(plan)[0] / 2
    assert set(read_log(plan)[0]) == {
        "step", "total_steps", "epoch", "loss", "grad_norm", "learning_rate", "tokens_per_second", "mfu",
        "peak_memory_bytes", "elapsed_seconds", "eta_seconds", "metrics",
    }  # fmt: skip
    assert TrainPlan.model_validate_json((run / "plan.json").read_bytes()) == plan
    assert {path.name for path in run.iterdir()} == {
        "plan.json", "logging.jsonl", "images", "attempt", "checkpoint-10", "checkpoint-12",
    }  # fmt: skip
    assert (run / "images" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "manifest.json",
    }  # fmt: skip
    assert not list(folder.parent.glob(".tmp*"))
    assert folder.name == artifacts.digest(folder)
    assert ending.artifact
    assert ending.artifact.uri == f"pvc://store/adapters/{folder.name}"
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == "pvc://models/tiny"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["data"][0]["uri"] == "configmap://data/run.jsonl"
    assert set(manifest) >= {"kind", "digest", "job", "base", "planDigest", "versions", "created"}
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in folder.iterdir())


def test_the_same_seed_gives_the_same_artefact_and_another_seed_another(make_plan: Make) -> None:
    digests = [
        train(make_plan(run=run, max_steps=2, tuner=DROPOUT, seed=seed)).artifact.digest  # type: ignore[union-attr]
        for run, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_full_keeps_the_bases_files_and_dtype(make_plan: Make, tiny: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    base = tmp_path / "half"
    shutil.copytree(tiny, base)
    AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16).save_pretrained(base)
    plan = make_plan(tuner=FULL)
    plan = plan.model_copy(update={"model": plan.model.model_copy(update={"path": str(base)})})
    folder = artifact_path(plan, train(plan))
    for name in ("tokenizer.json", "config.json"):
        assert json.loads((folder / name).read_text()) == json.loads((base / name).read_text())
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize(("quantization", "layer"), [("NF4", "Linear4bit"), ("Int8", "Linear8bitLt")])
def test_qlora_really_holds_a_quantised_base_and_learns(make_plan: Make, quantization: str, layer: str) -> None:
    import torch

    tuner = {"type": "QLoRA", "rank": 4, "alpha": 16, "dropout": 0.0, "quantization": quantization}
    plan = make_plan(max_steps=10, learning_rate=2e-2, tuner=tuner, gradient_checkpointing=True)
    trainer = make_trainer(plan)
    kinds = {type(module.base_layer).__name__ for module in trainer.model.modules() if hasattr(module, "base_layer")}
    assert kinds == {layer}
    trained = {parameter.dtype for parameter in trainer.model.parameters() if parameter.requires_grad}
    assert trained == {torch.float32}
    trainer.train()
    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert history[-1] < history[0] / 2


def test_packed_rows_are_kept_apart(make_plan: Make) -> None:
    for run, packing in (("packed", True), ("padded", False)):
        train(make_plan(run=run, tuner=FULL, packing=packing, micro_batch_size=1 if packing else 4,
                        global_batch_size=1 if packing else 4, max_length=256))  # fmt: skip
    packed, padded = (losses(make_plan(run=run))[0] for run in ("packed", "padded"))
    assert packed == pytest.approx(padded, rel=1e-5)


TURNS = [[("hi", "hello there", 0.25), ("and you?", "I am a tiny model", 1)], [("who?", "Xiao Huang", 3)]]


@pytest.mark.parametrize(("packing", "micro"), [(True, 1), (False, 1), (False, 3)])
def test_the_loss_of_weighed_turns_equals_a_plain_computation(
    make_plan: Make, tiny: Path, tokenizer: Any, packing: bool, micro: int
) -> None:
    """The sum of weight times loss over the number of learned tokens, whether rows of other weights share its batch,
    come in other micro-batches or are packed beside it; and its gradient's norm.
    """
    import torch
    from transformers import AutoModelForCausalLM

    rows: list[dict[str, Any]] = [
        {"messages": [
            message
            for question, answer, weight in turns
            for message in ({"role": "user", "content": question},
                            {"role": "assistant", "content": answer, "weight": weight})
        ]}
        for turns in [*TURNS[:2], *TURNS[:1]]
    ]  # fmt: skip
    rows[2]["messages"] = [{k: v for k, v in message.items() if k != "weight"} for message in rows[2]["messages"]]
    size = 1 if packing else 3
    plan = make_plan(rows=rows, tuner=FULL, packing=packing, micro_batch_size=micro, global_batch_size=size)
    train(plan)

    model, total, count = AutoModelForCausalLM.from_pretrained(tiny), torch.tensor(0.0), 0
    for row in rows:
        ids: list[int] = []
        labels: list[int] = []
        weights: list[float] = []
        for message in row["messages"]:
            head = tokenizer(f"<|im_start|>{message['role']}\n")["input_ids"]
            text = tokenizer(f"{message['content']}<|im_end|>")["input_ids"]
            end = tokenizer("\n")["input_ids"]
            ids += head + text + end
            learned = message["role"] == "assistant"
            labels += [-100] * len(head) + (text if learned else [-100] * len(text)) + [-100] * len(end)
            weights += [message.get("weight", 1)] * len(head + text + end)
            count += len(text) * learned
        each = torch.nn.functional.cross_entropy(
            model(torch.tensor([ids])).logits[0, :-1], torch.tensor(labels[1:]), reduction="none"
        )
        total = total + (each * torch.tensor(weights[1:])).sum()
    (total / count).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert losses(plan)[0] == pytest.approx(total.item() / count, rel=1e-5)
    assert read_log(plan)[0]["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_processes_that_share_rows_refuse_weights(make_plan: Make) -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.5}]}]
    plan = make_plan(rows=rows)
    plan = plan.model_copy(update={"distribution": plan.distribution.model_copy(update={"sequence_parallel": 2})})
    with pytest.raises(ConfigError, match=r"sequenceParallel: 2, but rows have turns with a loss or weight"):
        make_trainer(plan)


@pytest.mark.parametrize(("steps", "rises"), [(1, 0), (19, 0), (20, 1), (50, 2)])
def test_a_short_training_learns_from_its_first_step(make_plan: Make, steps: int, rises: int) -> None:
    plan = make_plan(max_steps=steps, warmup_ratio=0.05)
    trainer = make_trainer(plan)
    optimizer = trainer.create_optimizer()
    scheduler = trainer.create_scheduler(steps, optimizer)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0] / plan.training.learning_rate)
        optimizer.step()
        scheduler.step()
    assert rates[: rises + 1] == pytest.approx([at / max(1, rises) for at in range(rises)] + [1.0])


def test_gradient_checkpointing_changes_no_loss(make_plan: Make) -> None:
    for run, enabled in (("on", True), ("off", False)):
        train(make_plan(run=run, max_steps=3, gradient_checkpointing=enabled))
    assert losses(make_plan(run="on")) == pytest.approx(losses(make_plan(run="off")), rel=1e-5)


def test_pre_training_learns_text(make_plan: Make) -> None:
    rows = [{"text": f"hello world {number} this is a tiny model"} for number in range(8)]
    plan = make_plan(rows=rows, method={"type": "PreTraining"}, packing=True, max_steps=6, learning_rate=2e-2,
                     micro_batch_size=1, global_batch_size=1, max_length=64)  # fmt: skip
    train(plan)
    assert losses(plan)[-1] < losses(plan)[0]


def test_progress_is_served_during_training(make_plan: Make) -> None:
    from transformers import TrainerCallback
    from tunesmith_trainer.progress import Reporter

    plan = make_plan(max_steps=3)
    reporter = Reporter(Path(plan.output.run) / "logging.jsonl", 0)
    seen: list[dict[str, Any]] = []
    metrics: list[str] = []

    class Probe(TrainerCallback):
        """Asks as the operator does."""

        def ask(self, *args: Any, **kwargs: Any) -> None:
            assert reporter.server
            address = f"http://127.0.0.1:{reporter.server.server_address[1]}"
            with urllib.request.urlopen(f"{address}/progress") as answer:
                seen.append(json.load(answer))
            with urllib.request.urlopen(f"{address}/metrics") as answer:
                metrics.append(answer.read().decode())

        on_train_begin = on_step_end = on_log = ask

    make_trainer(plan, reporter, Probe()).train()
    reporter.close()
    assert seen[0]["step"] == 0
    assert {report["totalSteps"] for report in seen} == {3}
    assert [report["step"] for report in seen] == [0, 1, 1, 2, 2, 3, 3, 3]
    assert seen[-1]["loss"] > 0
    assert seen[-1]["tokensPerSecond"] > 0
    assert seen[-1]["etaSeconds"] == 0
    assert seen[-1]["peakMemoryBytes"] > 2**20
    assert seen[0]["idleSeconds"] >= 0
    assert {report["resumedStep"] for report in seen} == {0}
    assert [report["checkpointStep"] for report in seen] == [None] * 8
    assert 0 < seen[-1]["stepSeconds"] < 10
    assert "tunesmith_training_step 3.0" in metrics[-1]
    assert "tunesmith_training_idle_seconds" in metrics[0]
    assert f"tunesmith_training_step_seconds {seen[-1]['stepSeconds']}" in metrics[-1]
    assert "tunesmith_training_loss" not in metrics[0]


def test_a_taken_port_does_not_stop_the_training(make_plan: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from tunesmith.training.report import Report
    from tunesmith_trainer.server import Server

    taken = Server(0, Report)
    monkeypatch.setattr("tunesmith_trainer.train.PORT", taken.server_address[1])
    assert train(make_plan()).artifact
    taken.close()


def test_a_diverging_training_ends(make_plan: Make) -> None:
    with pytest.raises(LossDiverged, match=r"step \d+: the loss is .*nan.*spec.training.learningRate"):
        train(make_plan(tuner=FULL, max_steps=8, learning_rate=1e30))


def test_what_the_plan_asks_and_cannot_be_is_refused(
    make_plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"targetModules: the model has no module qq; choose of \['down_proj'"):
        train(make_plan(tuner={"type": "LoRA", "rank": 4, "alpha": 16, "target_modules": ["q_proj", "qq"]}))
    with pytest.raises(ConfigError, match="lm_head cannot have an adapter"):
        train(make_plan(tuner={"type": "LoRA", "rank": 4, "alpha": 16, "target_modules": ["lm_head"]}))
    with pytest.raises(ConfigError, match=r"1 process\(es\) run, but the plan says 1 node\(s\) x 2"):
        train(make_plan(processes=2, micro_batch_size=2))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"2 process\(es\) run, but the plan says 1 node\(s\) x 1"):
        train(make_plan())
    monkeypatch.undo()
    plan = make_plan()
    (tmp_path / "empty").mkdir()
    for path, message in (("no", "there is no folder"), ("empty", r"no config.json in .*; found \[\]")):
        missing = plan.model_copy(update={"model": plan.model.model_copy(update={"path": str(tmp_path / path)})})
        with pytest.raises(ModelError, match=f"model pvc://models/tiny: {message}"):
            train(missing)
    with pytest.raises(DataError, match="no answer"):
        train(make_plan(rows=[{"query": "x"}]))


@pytest.mark.parametrize("head", ["CausalLM", "SequenceClassification", "None"])
def test_a_checkpoint_without_some_of_its_weights_is_refused(tiny: Path, tmp_path: Path, head: Any) -> None:
    """Transformers fills them at random."""
    import torch
    from safetensors.torch import load_file, save_file
    from tunesmith_trainer.model import load_model

    folder = shutil.copytree(tiny, tmp_path / "cut")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("1.mlp.up_proj.weight"))
    del weights[name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"its files have no .*layers.1.mlp.up_proj.weight \(1 tensors are missing\)"):
        load_model(Place(uri="pvc://models/cut", path=str(folder)), torch.float32, head=head)


def test_named_target_modules_only_get_adapters(make_plan: Make) -> None:
    from safetensors import safe_open

    plan = make_plan(tuner={"type": "LoRA", "rank": 4, "alpha": 16, "target_modules": ["q_proj", "v_proj"]})
    with safe_open(artifact_path(plan, train(plan)) / "adapter_model.safetensors", framework="pt") as file:
        assert {key.split(".")[-3] for key in file.keys()} == {"q_proj", "v_proj"}  # noqa: SIM118


def test_a_full_disk_ends_with_its_class_and_leaves_the_checkpoint_before(
    make_plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from tunesmith.training.report import Ending
    from tunesmith_trainer.__main__ import main

    plan = make_plan(max_steps=3, checkpoint={"every_steps": 1})
    folder, save = Path(plan.checkpoint.path), torch.save

    def full(value: Any, path: Any, *arguments: Any, **options: Any) -> None:
        if "checkpoint-2" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        save(value, path, *arguments, **options)

    monkeypatch.setattr(torch, "save", full)
    (tmp_path / "plan.json").write_text(plan.model_dump_json(by_alias=True))
    assert main(["train", "--plan", str(tmp_path / "plan.json")]) == 72
    ending = Ending.model_validate_json((tmp_path / "termination-log").read_bytes())
    assert (ending.reason, ending.step, ending.checkpoint_step) == ("DiskFull", 2, 1)
    assert "spec.checkpoint.storage" in ending.message
    assert {path.name for path in folder.iterdir()} == {"plan.json", "logging.jsonl", "attempt", "checkpoint-1"}


def test_memory_that_is_not_there_ends_with_its_class(
    make_plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from tunesmith.training.report import Ending
    from tunesmith_trainer.__main__ import main
    from tunesmith_trainer.methods import supervised

    plan = make_plan(max_steps=3, checkpoint={"every_steps": 1})
    step = supervised.TRAINER.training_step

    def hungry(self: Any, *arguments: Any, **options: Any) -> Any:
        if self.state.global_step == 2:
            torch.empty(1 << 50)
        return step(self, *arguments, **options)

    monkeypatch.setattr(supervised.TRAINER, "training_step", hungry)
    (tmp_path / "plan.json").write_text(plan.model_dump_json(by_alias=True))
    assert main(["train", "--plan", str(tmp_path / "plan.json")]) == 68
    ending = Ending.model_validate_json((tmp_path / "termination-log").read_bytes())
    assert (ending.reason, ending.step, ending.checkpoint_step) == ("OutOfMemory", 2, 2)
    assert "spec.training.microBatchSize" in ending.message
