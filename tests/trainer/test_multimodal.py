"""Images in training: exact tokens and labels, and methods that learn what only the image says."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from trainer import multimodal as models
from trainer import support
from trainer.support import artifact_path, long, losses
from tunesmith.training.plan import TrainPlan

pytestmark = pytest.mark.trainer

Make = Callable[..., TrainPlan]
COLOURS = list(models.COLOURS)


@pytest.fixture(scope="session")
def vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2.5-VL."""
    return models.qwen_vl(tmp_path_factory.mktemp("vl"))


@pytest.fixture
def make_vl(vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """As `make_plan`, over the tiny Qwen2.5-VL; pictures lie beside the data."""
    monkeypatch.setenv("TUNESMITH_TERMINATION_LOG", str(tmp_path / "termination-log"))
    models.pictures(tmp_path)
    return partial(support.make_plan, tmp_path, vl)


def asked(colour: str, **more: Any) -> dict[str, Any]:
    """A row whose answer is only in its image."""
    return {"query": "<image>which colour?", "response": colour, "images": [f"{colour}.png"], **more}


def answers(folder: Path, pictures: Path, choices: list[str] = COLOURS) -> dict[str, str]:
    """The likeliest of `choices` for each picture, by the model at `folder`, read by transformers alone."""
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor: Any = AutoProcessor.from_pretrained(folder)
    model: Any = AutoModelForImageTextToText.from_pretrained(folder).eval()
    found = {}
    for colour in COLOURS:
        image, scores = Image.open(pictures / f"{colour}.png"), []
        for choice in choices:
            content = [{"type": "image"}, {"type": "text", "text": "which colour?"}]
            text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            begin = processor(text=[text], images=[image], return_tensors="pt")["input_ids"].shape[1]
            batch = processor(text=[text + choice + "<|im_end|>"], images=[image], return_tensors="pt")
            with torch.no_grad():
                logps = model(**batch).logits[0].log_softmax(-1)
            ids = batch["input_ids"][0]
            scores.append(float(sum(logps[t - 1, ids[t]] for t in range(begin, len(ids)))))
        found[colour] = choices[scores.index(max(scores))]
    return found


def test_sft_learns_what_only_the_image_says(make_vl: Make, tmp_path: Path, vl: Path) -> None:
    from tunesmith_trainer.train import train

    plan = make_vl(rows=[asked(c) for c in COLOURS], tuner={"type": "Full"}, max_steps=60, learning_rate=3e-3,
                   global_batch_size=3, micro_batch_size=3)  # fmt: skip
    ending = train(plan)
    assert losses(plan)[-1] < 0.1
    assert answers(vl, tmp_path) != {c: c for c in COLOURS}
    assert answers(artifact_path(plan, ending), tmp_path) == {c: c for c in COLOURS}


def test_an_image_that_became_smaller_takes_fewer_tokens(make_vl: Make, tmp_path: Path) -> None:
    from PIL import Image
    from tunesmith_trainer.methods import prepare
    from tunesmith_trainer.model import load_tokenizer
    from tunesmith_trainer.reading import read_plan

    plan = make_vl(rows=[asked("red")], max_length=512)

    def length() -> int:
        [row] = prepare(plan, read_plan(plan), load_tokenizer(plan.model)).dataset
        return len(row["input_ids"])

    before = length()
    path = tmp_path / "red.png"
    image = Image.open(path)
    image.resize((image.width // 2, image.height // 2)).save(path)
    assert length() < before


def others(colour: str) -> list[str]:
    """The wrong answers."""
    return [c for c in COLOURS if c != colour]


PAIRS = [asked(c, rejected_response=o) for c in COLOURS for o in others(c)]
JUDGED = [asked(c, label=True) for c in COLOURS for _ in (0, 1)] + [
    {**asked(c), "response": o, "label": False} for c in COLOURS for o in others(c)
]
MEMORISE = {"tuner": {"type": "Full"}, "learning_rate": 3e-3}


@pytest.fixture(scope="module")
def taught(vl: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two models after SFT: one `knows` the colours, one says any of them for any picture (`guesses`)."""
    from tunesmith_trainer.train import train

    found = {}
    folder = tmp_path_factory.mktemp("taught")
    models.pictures(folder)
    rows = {
        "knows": [asked(c) for c in COLOURS],
        "guesses": [{**asked(c), "response": o} for c in COLOURS for o in COLOURS],
    }
    for name, own in rows.items():
        plan = support.make_plan(folder, vl, run=name, rows=own, tuner={"type": "Full"}, max_steps=40,
                                 learning_rate=3e-3, global_batch_size=9, micro_batch_size=9)  # fmt: skip
        found[name] = artifact_path(plan, train(plan))
    return found


@pytest.mark.parametrize("method", ["DPO", "CPO", "SimPO", "ORPO", "KTO"])
def test_preferences_are_learned_where_only_the_image_says_which(
    make_vl: Make, tmp_path: Path, taught: dict[str, Path], method: str
) -> None:
    from tunesmith_trainer.train import train

    rows = JUDGED if method == "KTO" else PAIRS
    plan = make_vl(rows=rows, method=options(method), tuner={"type": "Full"}, max_steps=30, learning_rate=1e-3,
                   global_batch_size=6, micro_batch_size=6)  # fmt: skip
    plan = over(plan, taught["guesses"])
    assert answers(taught["guesses"], tmp_path) != {c: c for c in COLOURS}
    assert answers(artifact_path(plan, train(plan)), tmp_path) == {c: c for c in COLOURS}


def last(plan: TrainPlan, name: str) -> float:
    """The newest value of a metric."""
    return float([line["metrics"][name] for line in support.read_log(plan) if name in line["metrics"]][-1])


def over(plan: TrainPlan, model: Path) -> TrainPlan:
    """The plan over another model."""
    return plan.model_copy(update={"model": plan.model.model_copy(update={"path": str(model)})})


def options(method: str, **models: Any) -> dict[str, Any]:
    """The options of a method with their defaults, as the operator makes them explicit."""
    from tunesmith.api.methods import Method
    from tunesmith.training.planning import method_plan

    found = method_plan(Method.model_validate({"type": method, **models}), {})
    return found.model_dump(exclude_none=True)


def test_passes_over_answers_see_each_rows_own_image(vl: Path, tmp_path: Path) -> None:
    """In any order and micro-batches, what a pass is given is what transformers' processor makes of that image."""
    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from tunesmith.training.plan import Place
    from tunesmith_trainer.collate import Injection
    from tunesmith_trainer.media import Medium
    from tunesmith_trainer.model import load_tokenizer

    paths = [tmp_path / name for name in models.pictures(tmp_path).values()]
    multimodal: Any = load_tokenizer(Place(uri="pvc://models/vl", path=str(vl))).multimodal  # type: ignore[attr-defined]
    numbers = [multimodal.numbers([Medium("image", "here", path=str(path))]) for path in paths]
    model: Any = AutoModelForImageTextToText.from_pretrained(vl).eval()
    processor: Any = AutoProcessor.from_pretrained(vl)
    text = "<|vision_start|><|image_pad|><|vision_end|>which?"
    whole = [processor(text=[text], images=[Image.open(path)], return_tensors="pt") for path in paths]
    with torch.no_grad():
        expected = [model(**one).logits[0] for one in whole]
    injection = Injection(multimodal, numbers)
    injection.watch(model)
    order = [2, 0, 1]
    with torch.no_grad(), injection.of(order):
        for rows in ([2, 0], [1], [2, 0, 1]):
            found = model(input_ids=torch.cat([whole[row]["input_ids"] for row in rows])).logits
            for row, logits in zip(rows, found, strict=True):
                torch.testing.assert_close(logits, expected[row], rtol=1e-4, atol=1e-4)
    assert (expected[0] - expected[1]).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["GRPO", *long(("PPO",))])
def test_policies_learn_from_rewards_what_only_the_image_says(
    make_vl: Make, tmp_path: Path, taught: dict[str, Path], method: str
) -> None:
    from tunesmith_trainer.train import train

    reward = {"type": "Accuracy"}
    own = {"rollout": {"max_completion_length": 4, "temperature": 1.0}, "rewards": [reward]}
    own |= {"num_generations": 6} if method == "GRPO" else {"iterations": 2}
    rows = [{"query": "<image>which colour?", "solution": c, "images": [f"{c}.png"]} for c in COLOURS]
    plan = make_vl(rows=rows, method=options(method, **{method.lower(): own}), tuner={"type": "Full"}, max_steps=60,
                   learning_rate=5e-4, global_batch_size=18, micro_batch_size=18)  # fmt: skip
    plan = over(plan, taught["guesses"])
    ending = train(plan)
    rewards = [line["metrics"]["reward"] for line in support.read_log(plan) if "reward" in line["metrics"]]
    assert rewards[0] < 0.7 < 0.9 < rewards[-1]
    assert answers(artifact_path(plan, ending), tmp_path) == {c: c for c in COLOURS}


@pytest.mark.parametrize("on_policy", [0.0, 1.0])
def test_gkd_learns_a_teachers_view_of_images(
    make_vl: Make, tmp_path: Path, taught: dict[str, Path], on_policy: float
) -> None:
    from tunesmith_trainer.train import train

    own = {"teacher": {"uri": "pvc://models/teacher"}, "max_completion_length": 4, "on_policy": on_policy}
    method = options("GKD", gkd=own) | {
        "models": {"spec.method.gkd.teacher": {"uri": "pvc://models/teacher", "path": str(taught["knows"])}}
    }
    rows = [{**asked(c), "response": o} for c in COLOURS for o in COLOURS]
    plan = make_vl(rows=rows, method=method, tuner={"type": "Full"}, max_steps=20, learning_rate=2e-3,
                   global_batch_size=9, micro_batch_size=9)  # fmt: skip
    plan = over(plan, taught["guesses"])
    assert answers(artifact_path(plan, train(plan)), tmp_path) == {c: c for c in COLOURS}


def test_a_reward_model_judges_by_the_image_and_loads_again(make_vl: Make, tmp_path: Path) -> None:
    from tunesmith_trainer.train import train

    plan = make_vl(rows=PAIRS, method=options("RewardModel"), tuner={"type": "Full"}, max_steps=30,
                   learning_rate=2e-3, global_batch_size=6, micro_batch_size=6)  # fmt: skip
    folder = artifact_path(plan, train(plan))
    assert last(plan, "accuracy") == 1
    import torch
    from tunesmith.training.plan import Place
    from tunesmith_trainer import rewards
    from tunesmith_trainer.data import Row
    from tunesmith_trainer.media import Medium

    judge = rewards.Model(Place(uri="pvc://models/judge", path=str(folder)), "spec.method.grpo.rewards[0]")
    judge.load(torch.device("cpu"))
    for colour in COLOURS:
        medium = Medium("image", "here", path=str(tmp_path / f"{colour}.png"))
        content = [{"type": "image", "medium": medium}, {"type": "text", "text": "which colour?"}]
        row = Row("row", messages=({"role": "user", "content": content},))
        scores = judge(rewards.Answers([row] * 3, [""] * 3, COLOURS, [[]] * 3))
        assert COLOURS[scores.index(max(scores))] == colour


def test_classes_are_learned_from_images(make_vl: Make) -> None:
    from tunesmith_trainer.train import train

    rows = [{"query": "<image>", "label": c, "images": [f"{c}.png"]} for c in COLOURS]
    method = options("Classification", classification={"labels": COLOURS})
    plan = make_vl(rows=rows, method=method, tuner={"type": "LoRA", "rank": 8, "alpha": 32, "dropout": 0.0},
                   max_steps=30, learning_rate=1e-2, global_batch_size=3, micro_batch_size=3)  # fmt: skip
    folder = artifact_path(plan, train(plan))
    assert last(plan, "accuracy") == 1
    assert "score.weight" in " ".join(weights(folder / "adapter_model.safetensors"))


def weights(path: Path) -> list[str]:
    """The names of a file's tensors."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def test_vectors_of_images_are_learned(make_vl: Make) -> None:
    from tunesmith_trainer.train import train

    rows = [{"query": "<image>", "images": [f"{c}.png"], "positive": f"something {c}"} for c in COLOURS]
    plan = make_vl(rows=rows, method=options("Embedding"), tuner={"type": "Full"}, max_steps=30, learning_rate=3e-3,
                   global_batch_size=3, micro_batch_size=3)  # fmt: skip
    train(plan)
    assert last(plan, "recall@1") == 1
    assert losses(plan)[-1] < 0.2


def test_documents_that_are_images_are_ranked(make_vl: Make) -> None:
    from tunesmith_trainer.train import train

    rows = [
        {"query": f"something {c}", "positive": "<image>", "positive_images": [f"{c}.png"],
         "negative": ["<image>", "<image>"], "negative_images": [[f"{o}.png"] for o in others(c)]}
        for c in COLOURS
    ]  # fmt: skip
    plan = make_vl(rows=rows, method=options("Reranker"), tuner={"type": "Full"}, max_steps=40, learning_rate=2e-3,
                   global_batch_size=3, micro_batch_size=3)  # fmt: skip
    train(plan)
    assert last(plan, "recall@1") == 1
