"""Inference: answers against a plain greedy loop, judgements against the training's own evaluation."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from trainer import multimodal
from trainer.support import ROWS, artifact_path
from trainer.test_evaluation import METHODS, evaluated, evaluations
from tunesmith.api.quantization import QuantizationMethod
from tunesmith.training.plan import DatasetPlan, Place, QuantizationPlan, TrainPlan
from tunesmith_trainer import chat
from tunesmith_trainer.__main__ import main
from tunesmith_trainer.data import Row
from tunesmith_trainer.errors import ConfigError, DataError, ModelError
from tunesmith_trainer.export import export, ollama
from tunesmith_trainer.infer import data
from tunesmith_trainer.infer.answering import answers, prompt_of
from tunesmith_trainer.infer.answers import line_of
from tunesmith_trainer.infer.batching import result
from tunesmith_trainer.infer.judging import judged, limit_of
from tunesmith_trainer.infer.running import ask, converse, over
from tunesmith_trainer.infer.scores import compared, summary
from tunesmith_trainer.infer.subject import Loaded, Sampling, Task, context_of, find, load, method_of
from tunesmith_trainer.local.addresses import Here
from tunesmith_trainer.model import ends_of, keep_ends, load_tokenizer
from tunesmith_trainer.train import train

pytestmark = pytest.mark.trainer

Make = Callable[..., TrainPlan]
SHORT = Sampling(max_new_tokens=12)
LORA = {"type": "LoRA", "rank": 4, "alpha": 16, "dropout": 0.0}


def opened(folder: Path, **options: Any) -> Loaded:
    """What is in a folder, ready."""
    return load(find(str(folder), Here(folder), **options))


def greedy(model: Any, ids: list[int], ends: set[int], count: int, **more: Any) -> list[int]:
    """The likeliest tokens one after the other, each by a pass over all before it, without padding or cache."""
    made: list[int] = []
    while len(made) < count:
        with torch.inference_mode():
            token = int(model(torch.tensor([ids + made]), use_cache=False, **more).logits[0, -1].argmax())
        if token in ends:
            break
        made.append(token)
    return made


def spoken(text: str) -> str:
    """A question in ChatML, up to the answer."""
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


QUESTIONS = [
    "hello",
    "what is the capital of Zhejiang? tell me, assistant, as this is used for testing",
    "who are you?",
]


@pytest.mark.parametrize("method", [None, "W8A8"])
@pytest.mark.filterwarnings("ignore:.*is an Enum subclass")
def test_a_batch_answers_as_a_plain_greedy_loop_over_each_row_alone(
    tiny: Path, tokenizer: Any, tmp_path: Path, method: QuantizationMethod | None
) -> None:
    """Also a model that is quantised: it stays so."""
    from transformers import AutoModelForCausalLM

    if method:
        export(Place(uri="x", path=str(tiny)), QuantizationPlan(method=method, tolerance=1), tmp_path)
        tiny = tmp_path
    loaded = opened(tiny)
    assert (getattr(loaded.model, "hf_quantizer", None) is not None) == bool(method)
    prompts = [prompt_of(data.one("Generate", {"query": text}), loaded) for text in QUESTIONS]
    model = AutoModelForCausalLM.from_pretrained(tiny).eval()
    expected = []
    for text in QUESTIONS:
        made = greedy(model, tokenizer(spoken(text))["input_ids"], {tokenizer.eos_token_id}, 12)
        expected.append(tokenizer.decode(made, skip_special_tokens=True))
    assert len(set(expected)) == 3, "the answers must differ"
    assert answers(prompts, loaded, SHORT) == expected
    assert [answers([one], loaded, SHORT)[0] for one in prompts] == expected


def test_a_batch_of_images_and_texts_answers_as_each_row_alone(tmp_path: Path) -> None:
    from PIL import Image

    folder = multimodal.qwen_vl(tmp_path / "vl")
    rows: list[dict[str, Any]] = [{"query": "what is the capital of Zhejiang? tell me, assistant"}]
    for number, (name, colour) in enumerate(multimodal.COLOURS.items()):
        Image.new("RGB", (28 * (2 + number), 56), colour).save(tmp_path / f"{name}.png")
        rows.append({"query": "<image>who?", "images": [f"{name}.png"]})
    loaded = opened(folder)
    prompts = [prompt_of(data.one("Generate", row, tmp_path), loaded) for row in rows]
    together = answers(prompts, loaded, SHORT)
    assert together == [answers([one], loaded, SHORT)[0] for one in prompts]
    assert len(set(together)) == 4, "the answers must differ"


def trained(make: Make, tmp_path: Path, **more: Any) -> tuple[TrainPlan, Path]:
    """A run that has learned its four rows, and its artefact."""
    options = {"max_steps": 40, "learning_rate": 1e-2, **more}
    plan = evaluated(make(tuner={**LORA, "rank": 16}, **options), ROWS, tmp_path, every_steps=100)
    return plan, artifact_path(plan, train(plan))


def test_all_is_read_from_the_artefact(
    make_plan: Make, tmp_path: Path, tiny: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """One question, streamed; its system prompt is the job's."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plan = make_plan(max_steps=2, learning_rate=1e-2)
    plan = plan.model_copy(update={"chat_template": plan.chat_template.model_copy(update={"system": "hello world"})})
    folder = artifact_path(plan, train(plan))
    capsys.readouterr()
    arguments = ["infer", str(folder), "--prompt", "who are you?", "--max-new-tokens", "12"]
    assert main(arguments) == 0
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), folder).eval()
    asked = "<|im_start|>system\nhello world<|im_end|>\n" + spoken("who are you?")
    made = greedy(model, tokenizer(asked)["input_ids"], {tokenizer.eos_token_id}, 12)
    expected = tokenizer.decode(made, skip_special_tokens=True)
    assert expected.strip()
    assert capsys.readouterr().out.strip() == expected.strip()


def test_a_conversation_remembers_what_was_said_until_an_empty_line(
    tiny: Path, tokenizer: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = opened(tiny)
    converse(loaded, None, SHORT, iter(["hello", "who are you?", "", "hello"]))
    said = capsys.readouterr().out
    ends = {tokenizer.eos_token_id}
    first = tokenizer.decode(greedy(loaded.model, tokenizer(spoken("hello"))["input_ids"], ends, 12))
    then = spoken("hello") + first + "<|im_end|>\n" + spoken("who are you?")
    second = tokenizer.decode(greedy(loaded.model, tokenizer(then)["input_ids"], ends, 12))
    assert said.replace("\n", "") == (first + second + first).replace("\n", "")


def test_the_validation_rows_become_lines_with_scores(
    make_plan: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, folder = trained(make_plan, tmp_path)
    out = tmp_path / "results.jsonl"
    arguments = ["infer", str(folder), "--data", "validation", "--out", str(out), "--max-new-tokens", "24"]
    assert main([*arguments, "--batch-size", "3"]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["expected"] for line in lines] == [row["response"] for row in ROWS]
    assert [line["prompt"][-1]["content"] for line in lines] == [row["query"] for row in ROWS]
    assert [line["answer"] for line in lines] == [row["response"] for row in ROWS], "it has learned them"
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["rows"], said["accuracy"], said["rougeL"]) == (4, 1.0, 1.0)
    # Another dataset, of which one answer is another.
    other = [ROWS[0], {**ROWS[1], "response": "Hangzhou it is"}]
    path = tmp_path / "other.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in other))
    assert main(["infer", str(folder), "--data", str(path), "--out", str(out), "--max-new-tokens", "24"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (said["rows"], said["accuracy"], said["rouge1"]) == (2, 0.5, pytest.approx((1 + 0.5) / 2))
    assert plan.model.uri


NAMES = {"Classification": "accuracy", "Embedding": "recall@1", "Reranker": "recall@1", "RewardModel": "accuracy"}


@pytest.mark.parametrize(("name", "tuner"), [("Classification", "LoRA"), ("Embedding", "Full"), ("Reranker", "LoRA"),
                                             ("RewardModel", "Full")])  # fmt: skip
def test_what_does_not_answer_is_judged_as_the_training_did(
    make_plan: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, tuner: str
) -> None:
    method, rows, _ = METHODS[name]
    kept = {"every_steps": 100, "publish": "Last"}
    options = {"max_steps": 3, "learning_rate": 1e-3, "tuner": LORA if tuner == "LoRA" else {"type": "Full"}}
    plan = evaluated(make_plan(run=name, method=method, rows=rows, **options), rows, tmp_path, **kept)
    folder = artifact_path(plan, train(plan))
    out = tmp_path / "results.jsonl"
    capsys.readouterr()
    assert main(["infer", str(folder), "--data", "validation", "--out", str(out), "--batch-size", "2"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    measured = evaluations(plan)[-1]["metrics"]
    assert said[NAMES[name]] == pytest.approx(measured[NAMES[name]])
    if name == "RewardModel":
        assert said["margin"] == pytest.approx(measured["margin"], abs=1e-4)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    if name == "Classification":
        assert all(sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-4) for line in lines)
    if name == "Embedding":
        from sentence_transformers import SentenceTransformer

        vectors = SentenceTransformer(str(folder), device="cpu").encode([row["query"] for row in rows])
        assert torch.allclose(torch.tensor([line["vector"] for line in lines]), torch.tensor(vectors), atol=1e-5)


def test_a_question_to_each_kind_of_model(make_plan: Make, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {
        "Classification": (["--prompt", "hello"], "label"),
        "Reranker": (["--prompt", "hello", "--document", "no", "--document", "hello world"], "order"),
    }
    for name, (arguments, key) in asked.items():
        method, rows, _ = METHODS[name]
        plan = make_plan(run=f"ask-{name}", method=method, rows=rows)
        folder = artifact_path(plan, train(plan))
        capsys.readouterr()
        assert main(["infer", str(folder), *arguments]) == 0
        assert key in json.loads(capsys.readouterr().out.splitlines()[-1])


def test_what_is_missing_is_said(make_plan: Make, tiny: Path, tmp_path: Path) -> None:
    plan = make_plan()
    folder = artifact_path(plan, train(plan))
    subject = find(str(folder), Here(tmp_path))
    with pytest.raises(ConfigError, match="kept no rows aside"):
        data.rows(subject, "validation", Here(tmp_path), None)
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    manifest = json.loads((moved / "manifest.json").read_text())
    manifest["plan"]["model"]["path"] = str(tmp_path / "gone")
    (moved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelError, match=r"its base pvc://models/tiny is not here .*: give its folder by --base"):
        find(str(moved), Here(tmp_path))
    assert find(str(moved), Here(tmp_path), base=tiny).model.path == str(tiny)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(tiny)
    assert find(str(moved), Here(tmp_path)).model.path == str(tmp_path / "models" / "tiny")
    (moved / "manifest.json").unlink()
    with pytest.raises(ModelError, match="give the base by --base"):
        find(str(moved), Here(tmp_path))


def test_rouge_and_equality() -> None:
    found = compared(" the cat sat ", "the cat sat")
    assert (found["correct"], found["rouge1"], found["rouge2"], found["rougeL"]) == (True, 1, 1, 1)
    # Longest common subsequence "the cat": precision 2/3, recall 2/4.
    found = compared("the big cat", "the cat sat down")
    assert (found["correct"], found["rouge1"], found["rouge2"]) == (False, pytest.approx(4 / 7, abs=1e-6), 0)
    assert found["rougeL"] == pytest.approx(4 / 7, abs=1e-6)
    assert compared("我是小黄", "我是小红")["rouge1"] == 0.75
    # Vowels are characters of their own in many scripts, and accents may be.
    assert compared("की", "का")["rouge1"] == 0
    assert compared("हिन्दी में किताब", "हिन्दी की किताब")["rouge1"] == pytest.approx(2 / 3, abs=1e-6)
    assert compared("cafe\u0301", "caf\u00e9")["rouge1"] == 1
    assert summary([{"correct": True}, {"correct": False}, {}]) == {"rows": 3, "accuracy": 0.5}


def test_what_a_tables_messages_hold_beside_text_becomes_text(tmp_path: Path) -> None:
    """As the times of turns do, which published conversations have."""
    import pyarrow
    import pyarrow.parquet

    turn = {"role": "user", "content": "hello", "timestamp": datetime(2024, 5, 1, tzinfo=UTC)}
    table = pyarrow.Table.from_pylist([{"conversation": [turn, {**turn, "role": "assistant"}]}])
    pyarrow.parquet.write_table(table, tmp_path / "asked.parquet")
    dataset = DatasetPlan(uri="file:///asked.parquet", path=str(tmp_path / "asked.parquet"))
    [row] = data.read(dataset, "Generate")
    [said] = json.loads(line_of(result(row, "hello")))["prompt"]
    assert said == {"role": "user", "content": "hello", "timestamp": "2024-05-01 00:00:00+00:00"}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [(1, ("Regression", None)), (2, ("SingleLabel", ["LABEL_0", "LABEL_1"])), (3, ("SingleLabel", None))],
)
def test_a_classifier_of_others_need_not_name_its_classes(
    tiny: Path, tmp_path: Path, labels: int, expected: tuple[str, list[str] | None]
) -> None:
    """Transformers leaves the names of two classes out of config.json, and takes one for a number."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(tiny, num_labels=labels, architectures=["LlamaForSequenceClassification"])
    config.save_pretrained(tmp_path)
    found = method_of(Place(uri="x", path=str(tmp_path))).classification
    assert found
    names = [f"LABEL_{number}" for number in range(3)] if labels == 3 else expected[1]
    assert (found.problem, found.labels) == (expected[0], names)


def test_nothing_is_said_of_texts_by_a_model_whose_numbers_are_none(tiny: Path, tmp_path: Path) -> None:
    """NaN is no JSON, and of documents with such scores the first would be the best."""
    folder = shutil.copytree(tiny, tmp_path / "judge")
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    (folder / "config.json").write_text(json.dumps(config))
    loaded, row = opened(folder), data.one("Classify", {"text": "hello"})
    assert judged([row], loaded, 1)
    with torch.no_grad():
        next(loaded.model.parameters()).fill_(math.nan)
    with pytest.raises(ModelError, match="is no number"):
        judged([row], loaded, 1)


@pytest.fixture
def base(tiny: Path, tmp_path: Path) -> Path:
    """A base model with a template, whose end of text is another than the template's end of a turn."""
    folder = shutil.copytree(tiny, tmp_path / "base")
    said = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**said, "eos_token": "<|endoftext|>"}))
    (folder / "generation_config.json").unlink()
    return folder


@pytest.mark.parametrize("tuner", [LORA, {"type": "Full"}], ids=lambda tuner: tuner["type"])
def test_engines_are_told_where_answers_end_that_were_trained(
    base: Path, make_plan: Make, tuner: dict[str, Any]
) -> None:
    plan = make_plan(tuner=tuner)
    plan = plan.model_copy(update={"model": Place(uri="x", path=str(base))})
    tokenizer = load_tokenizer(plan.model)
    made = Place(uri="x", path=str(artifact_path(plan, train(plan))))
    assert [tokenizer.decode([end]) for end in ends_of(made)] == ["<|endoftext|>", "<|im_end|>"]


def test_an_adapter_of_a_model_that_ends_its_turns_itself_says_nothing(make_plan: Make) -> None:
    plan = make_plan()
    assert not (artifact_path(plan, train(plan)) / "generation_config.json").exists()


def test_an_answer_ends_where_the_template_ends_a_turn(base: Path) -> None:
    """At its end of text a model that learned conversations never ends."""
    place = Place(uri="x", path=str(base))
    tokenizer = load_tokenizer(place)
    assert [tokenizer.decode([end]) for end in chat.ends(tokenizer)] == ["<|endoftext|>", "<|im_end|>"]
    assert 'PARAMETER stop "<|im_end|>"' in ollama.modelfile("model.gguf", tokenizer)
    keep_ends(place)
    assert [tokenizer.decode([end]) for end in ends_of(place)] == ["<|endoftext|>", "<|im_end|>"]


def test_a_prompt_that_fills_the_context_is_refused_before_anything_is_answered(tiny: Path, tmp_path: Path) -> None:
    """Of 512 tokens here. A text that is judged is cut there."""
    path, out = tmp_path / "asked.jsonl", tmp_path / "out.jsonl"
    long = "hello world " * 600
    path.write_text("".join(json.dumps({"query": text}) + "\n" for text in ("hello", long)))
    loaded = opened(tiny)
    rows = data.rows(loaded.subject, str(path), Here(tmp_path), None)
    count = len(loaded.tokenizer(spoken(long))["input_ids"])
    with pytest.raises(DataError, match=rf"asked.jsonl row 2: its prompt has {count} tokens, but .* context is 512,"):
        over(loaded, rows, out, 1, SHORT)
    assert not out.exists()
    with pytest.raises(DataError, match="asked: its prompt has"):
        ask(loaded, {"query": long}, SHORT)
    assert limit_of(loaded).tokens == 512


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({}, math.inf),
        ({"max_position_embeddings": 512}, 512),
        ({"max_position_embeddings": 512, "rope_parameters": {"rope_type": "default"}}, 512),
        ({"max_position_embeddings": 512, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}, 1024),
        (
            {
                "max_position_embeddings": 1024,
                "rope_parameters": {"rope_type": "llama3", "factor": 2.0, "original_max_position_embeddings": 256},
            },
            1024,
        ),
    ],
)
def test_the_context_is_what_the_model_says_of_itself(config: dict[str, Any], context: float) -> None:
    class Text(SimpleNamespace):
        def get_text_config(self) -> Any:
            return self

    assert context_of(Text(**config)) == context


def asked_in(folder: Path, row: dict[str, Any], task: Task, **columns: str) -> Row:
    """A dataset's only row."""
    (folder / "asked.jsonl").write_text(json.dumps(row) + "\n")
    place = {"uri": "file:///asked.jsonl", "path": str(folder / "asked.jsonl")}
    [read] = data.read(DatasetPlan.model_validate({**place, "columns": columns}), task)
    return read


def test_a_solutions_answer_is_right_by_its_result(tmp_path: Path) -> None:
    row = asked_in(tmp_path, {"problem": "6 times 7?", "solution": "six times seven\n#### 42"}, "Generate")
    assert result(row, "<think>35 and 7</think> The answer is 42.")["correct"]
    assert not result(row, "The answer is 43.")["correct"]
    other = asked_in(tmp_path, {"problem": "6 times 7?", "answer": "42"}, "Generate")
    assert not result(other, "The answer is 42.")["correct"]


def test_what_is_expected_may_be_in_a_column_of_any_name(tmp_path: Path) -> None:
    assert asked_in(tmp_path, {"body": "B", "mood": "good"}, "Classify", text="body", label="mood").label == "good"
    assert asked_in(tmp_path, {"query": "Q", "response": "A", "worse": "W"}, "Score", rejected="worse").rejected
    row = asked_in(tmp_path, {"query": "Q", "page": "D"}, "Embed", response="page")
    assert (row.text, row.messages, row.positives) == ("Q", (), ("D",))
