"""The card of an artefact, as the Hub's own library reads it; and artefacts pushed from a machine without a cluster."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard, ModelCard
from trainer.support import artifact_path, losses
from trainer.test_inference_job import asking
from trainer.test_merge import merge_plan
from tunesmith import artifacts
from tunesmith.fetching import fetch
from tunesmith.training.plan import DatasetPlan, TrainPlan
from tunesmith_trainer.card import card, final_metrics, numbers, table
from tunesmith_trainer.files import data_files, read_file
from tunesmith_trainer.infer.job import infer
from tunesmith_trainer.merge import merge
from tunesmith_trainer.train import train
from unit.agent.servers import serving
from unit.agent.standins import ModelScope

pytestmark = pytest.mark.trainer

Make = Callable[..., TrainPlan]


def from_hub(plan: TrainPlan) -> TrainPlan:
    """The plan, as of a base and data of a hub."""
    model = plan.model.model_copy(update={"uri": "hf://org/base@main"})
    dataset = plan.datasets[0].model_copy(update={"uri": "hf://org/rows@v2"})
    return plan.model_copy(update={"model": model, "datasets": [dataset]})


def test_a_trained_adapters_card_says_where_it_is_from_and_how_it_was_made(make_plan: Make) -> None:
    plan = from_hub(make_plan(max_steps=2, learning_rate=3e-3))
    folder = artifact_path(plan, train(plan))
    found = ModelCard((folder / "README.md").read_text())
    assert found.data.to_dict() == {
        "base_model": "org/base", "base_model_relation": "adapter", "library_name": "peft",
        "pipeline_tag": "text-generation", "datasets": ["org/rows"], "tags": ["tunesmith", "sft", "lora"],
    }  # fmt: skip
    for line in (
        "| method | SFT |", "| rank | 4 |", "| alpha | 16 |", "| learning rate | 0.003 |", "| steps | 2 |",
        f"| training loss | {losses(plan)[-1]:.6g} |", "| `hf://org/rows@v2` | all rows |",
    ):  # fmt: skip
        assert line in found.text, found.text


def test_the_card_is_no_part_of_the_digest(make_plan: Make) -> None:
    plan = make_plan()
    folder = artifact_path(plan, train(plan))
    (folder / "README.md").write_text("mended by hand")
    assert artifacts.digest(folder) == folder.name


def test_a_merged_models_card_names_what_its_adapter_was_trained_by(
    make_plan: Make, tiny: Path, tmp_path: Path
) -> None:
    trained = make_plan(run="a")
    adapter = train(trained).artifact
    assert adapter
    place = {"uri": adapter.uri, "path": str(artifact_path(trained, train(trained)))}
    plan = merge_plan(tiny, tmp_path / "store", [place])
    model = plan.model.model_copy(update={"uri": "ms://org/base"})
    output = plan.output.model_copy(update={"license": "apache-2.0"})
    plan = plan.model_copy(update={"model": model, "output": output})
    ending = merge(plan)
    found = ModelCard((artifact_path(plan, ending) / "README.md").read_text())
    assert found.data.to_dict() == {
        "base_model": "org/base", "base_model_relation": "finetune", "library_name": "transformers",
        "license": "apache-2.0", "pipeline_tag": "text-generation", "tags": ["tunesmith", "sft", "merge"],
    }  # fmt: skip
    assert f"| error of the merged logits | {ending.logit_error:.6g} |" in found.text
    assert f"`{adapter.uri}`, weight 1, step 1" in found.text


@pytest.mark.parametrize(
    ("method", "tag"),
    [("Classification", "text-classification"), ("Embedding", "sentence-similarity"), ("Reranker", "text-ranking"),
     ("DPO", "text-generation")],
)  # fmt: skip
def test_a_hub_shows_each_method_with_the_widget_of_its_task(
    make_plan: Make, method: str, tag: str, tmp_path: Path
) -> None:
    plan = make_plan()
    plan = plan.model_copy(update={"method": plan.method.model_copy(update={"type": method})})
    assert ModelCard(card(plan, "adapters", tmp_path, {})).data.pipeline_tag == tag


def test_answers_say_that_of_their_files_the_lines_alone_are_rows(tiny: Path, tmp_path: Path) -> None:
    """So the library of the Hub and our own reader find the rows, and not metrics.json."""
    rows = [{"query": "hello", "response": "world"}, {"query": "who are you?", "response": "nobody"}]
    plan = asking(tmp_path, tiny, rows)
    plan = plan.model_copy(update={"output": plan.output.model_copy(update={"license": "mit"})})
    ending = infer(plan)
    folder = artifact_path(plan, ending)
    found = DatasetCard((folder / "README.md").read_text())
    assert found.data.to_dict() == {
        "configs": [{"config_name": "default", "data_files": "results.jsonl"}], "license": "mit",
        "tags": ["tunesmith", "answers"],
    }  # fmt: skip
    assert ending.metrics
    for line in (
        "| tokens of an answer at most | 8 |", "| `configmap://data/asked.jsonl` | all rows |", "| rows | 2 |",
        f"| rougeL | {ending.metrics['rougeL']:.6g} |",
    ):  # fmt: skip
        assert line in found.text, found.text
    theirs = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    dataset = DatasetPlan(uri="hf://org/asked", path=str(folder))
    [(path, uri)] = data_files(dataset, "spec.datasets[0]")
    ours = [row for _, row in read_file(path, "spec.datasets[0]", uri)]
    assert [one["answer"] for one in ours if isinstance(one, dict)] == theirs["answer"]
    assert len(ours) == 2


def test_metrics_are_the_last_of_each_in_the_trainings_log() -> None:
    history = [
        {"loss": 2.0, "step": 1}, {"eval_loss": 1.5, "eval_runtime": 3.0, "eval_mean_token_accuracy": 0.5, "step": 1},
        {"loss": 1.0, "step": 2}, {"eval_loss": 1.25, "eval_runtime": 3.0, "step": 2}, {"train_loss": 1.5, "step": 2},
    ]  # fmt: skip
    assert final_metrics(history, 2, None) == {
        "steps": 2, "training loss": 1.0, "loss (evaluation)": 1.25, "mean token accuracy (evaluation)": 0.5,
    }  # fmt: skip
    # Of an earlier step that is published.
    assert final_metrics(history, 1, None) == {
        "steps": 1, "training loss": 2.0, "loss (evaluation)": 1.5, "mean token accuracy (evaluation)": 0.5,
    }  # fmt: skip


def test_a_table_shows_whole_numbers_whole_and_any_text_in_its_cell() -> None:
    assert numbers({"rows": 12_345_678, "accuracy": 0.123456789, "loss": None}) == [
        ("rows", "12345678"), ("accuracy", "0.123457"),
    ]  # fmt: skip
    shown = table("How", [("target modules", r".*\.(q|v)_proj")])
    assert shown.splitlines()[-1] == r"| target modules | .*\.(q\|v)_proj |"


def test_what_was_trained_here_is_pushed_from_here(
    make_plan: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = make_plan()
    folder = artifact_path(plan, train(plan))
    program = [sys.executable, "-m", "tunesmith_trainer", "push", str(folder), "ms://org/tuned"]
    with serving() as server:
        hub = ModelScope(server)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", f"http://{server.address}")
        refused = subprocess.run(program, capture_output=True, text=True, timeout=60)
        assert refused.returncode == 64
        assert "ms://org/tuned: 127.0.0.1" in refused.stderr
        assert "needs `token`" in refused.stderr
        monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms_ours")
        done = subprocess.run(program, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert "revision commit-1" in done.stdout
        assert hub.private == {"models/org/tuned"}
        (tmp_path / "keys").mkdir()
        (tmp_path / "keys" / "token").write_text("ms_ours")
        assert artifacts.digest(fetch("ms://org/tuned", tmp_path / "to", tmp_path / "keys", "model")) == folder.name
