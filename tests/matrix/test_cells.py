"""Every combination that training/capabilities.py calls supported, run for real.

make matrix MATRIX_OUT=docs/matrix.md    all cells, and a page of what was seen
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainer import multimodal as media
from trainer.support import artifact_path, read_log
from trainer.test_distributed import torchrun
from trainer.test_export import place
from trainer.test_export import plan_of as plan_for
from tunesmith.api.quantization import QuantizationMethod
from tunesmith.training.capabilities import AXES, FULL_PRECISION, Cell, cells, name, verdict
from tunesmith.training.plan import TrainPlan
from tunesmith_trainer.export import export
from tunesmith_trainer.train import train

pytestmark = [pytest.mark.trainer, pytest.mark.matrix]

Make = Callable[..., TrainPlan]
Rows = list[dict[str, Any]]

WORDS = ("red", "green", "blue", "black", "white", "brown", "grey", "pink")
PAIRS: Rows = [{"query": f"say {w}", "response": w, "rejected_response": "no"} for w in WORDS]
JUDGED: Rows = [{"query": f"say {w}", "response": w, "label": n % 2 == 0} for n, w in enumerate(WORDS)]
SCORED: Rows = [{"query": f"a {w}", "positive": f"the {w}", "negative": ["x", "y"]} for w in WORDS]
PROMPTS: Rows = [{"query": f"say {w}", "solution": w} for w in WORDS]
REWARD = {"type": "Python", "python": {"uri": f"file://{Path(__file__).with_name('reward.py')}"}}
ROLLOUT = {"rollout": {"max_completion_length": 6}, "rewards": [REWARD]}

# Method -> (rows, options).
METHODS: dict[str, tuple[Rows, dict[str, Any]]] = {
    "PreTraining": ([{"text": f"the word is {w}"} for w in WORDS], {}),
    "SFT": ([{"query": f"say {w}", "response": w} for w in WORDS], {}),
    "DPO": (PAIRS, {}),
    "GRPO": (PROMPTS, {"grpo": {**ROLLOUT, "num_generations": 2}}),
    "RewardModel": (PAIRS, {}),
    "PPO": (PROMPTS, {"ppo": {**ROLLOUT, "iterations": 2}}),
    "GKD": (PAIRS, {"gkd": {"teacher": {"uri": "pvc://models/tiny"}, "max_completion_length": 6}}),
    "KTO": (JUDGED, {}),
    "CPO": (PAIRS, {}),
    "SimPO": (PAIRS, {}),
    "ORPO": (PAIRS, {}),
    "Classification": (
        [{"text": f"a {w}", "label": n % 2} for n, w in enumerate(WORDS)],
        {"classification": {"labels": ["warm", "cold"]}},
    ),
    "Embedding": (SCORED, {}),
    "Reranker": (SCORED, {}),
}
TUNERS: dict[str, dict[str, Any]] = {
    "Full": {"type": "Full"},
    "LoRA": {"type": "LoRA", "rank": 4, "alpha": 16},
    "PEFT": {"type": "PEFT", "peft": {"type": "OFT"}},
    "QLoRA": {"type": "QLoRA", "rank": 4, "alpha": 16, "quantization": "NF4"},
}
# Modality -> (files, by the place of a row; the tag that stands before the question).
MEDIA = {"Image": ("images", "<image>"), "Video": ("videos", "<video>"), "Audio": ("audios", "<audio>")}
# Base -> what exports one.
BASES: dict[str, QuantizationMethod] = {"CompressedTensors": "W4A16", "BitsAndBytes": "NF4"}
SUPPORTED = [cell for cell in cells() if verdict(cell) is None]


def with_media(rows: Rows, modality: str, folder: Path) -> Rows:
    """The rows with something to look at or to listen to in each; its files lie in `folder`."""
    column, tag = MEDIA[modality]
    pictures = list(media.pictures(folder).values())
    for number in range(2):
        media.sound(folder / f"{number}.wav", 300.0 * (number + 1))
    media.film(folder / "film.mp4", ["red", "blue"])
    files: dict[str, list[Any]] = {
        "Image": pictures, "Video": ["film.mp4", pictures[1:]], "Audio": ["0.wav", "1.wav"]
    }  # fmt: skip
    found = []
    for number, row in enumerate(rows):
        asked = next(name for name in ("query", "text") if name in row)
        own = files[modality][number % len(files[modality])]
        found.append({**row, asked: f"{tag}{row[asked]}", column: [own]})
    return found


def plan_of(make_plan: Make, tiny: Path, cell: Cell, folder: Path) -> TrainPlan:
    """The plan of a cell: two steps over eight rows. What is split is split over two processes."""
    rows, options = METHODS[cell.method]
    if cell.modality != "Text":
        rows = with_media(rows, cell.modality, folder)
    nodes = 2 if cell.nodes == "SeveralNodes" else 1
    processes = 2 if (cell.strategy, cell.parallelism) != ("DDP", "Data") and nodes == 1 else 1
    if (cell.strategy, cell.parallelism) == ("FSDP2", "Tensor"):
        processes = 4
    shared = {"Sequence": {"sequence_parallel": 2}, "Tensor": {"tensor_parallel": 2}}.get(cell.parallelism, {})
    models = {}
    if cell.method == "GKD":
        models["spec.method.gkd.teacher"] = {"uri": "pvc://models/tiny", "path": str(tiny)}
    plan: TrainPlan = make_plan(
        run="cell",
        rows=rows,
        tuner=TUNERS[cell.tuner],
        method={"type": cell.method, **complete(cell.method, options), "models": models},
        processes=nodes * processes // (2 if shared else 1),
        max_steps=2,
        global_batch_size=8,
        micro_batch_size=2,
        max_length=96,
    )
    spread = plan.distribution.model_copy(update={"strategy": cell.strategy, **shared})
    return plan.model_copy(
        update={
            "model": plan.model.model_copy(update={"path": str(tiny)}),
            "nodes": nodes,
            "processes_per_node": processes,
            "distribution": spread,
        }
    )


def complete(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options of the method's type with their defaults, as the operator makes them explicit."""
    from tunesmith.api.methods import Method
    from tunesmith.training.planning import method_plan

    found = method_plan(Method.model_validate({"type": method, **options}), {})
    return found.model_dump(exclude={"type", "models"}, exclude_none=True)


def test_there_is_a_way_to_run_each_supported_cell() -> None:
    assert set(METHODS) == set(AXES["method"])
    assert {cell.tuner for cell in SUPPORTED} <= set(TUNERS)
    assert {cell.base for cell in SUPPORTED} == {FULL_PRECISION, *BASES}


@pytest.mark.parametrize("cell", SUPPORTED, ids=name)
def test_cell(make_plan: Make, tiny: Path, readers: dict[str, Path], tmp_path: Path, cell: Cell) -> None:
    base = readers.get(cell.modality, tiny)
    if cell.base != FULL_PRECISION:
        base = tmp_path / "base"
        base.mkdir()
        export(place(tiny), plan_for(BASES[cell.base]), base)
    plan = plan_of(make_plan, base, cell, tmp_path)
    if plan.world_size == 1:
        ending = train(plan)
    else:
        ended = torchrun(plan, tmp_path)
        assert [code for code, _, _ in ended] == [0] * plan.nodes, [errors[-3000:] for _, errors, _ in ended]
        ending = next(ending for _, _, ending in ended if ending.artifact)
    log = read_log(plan)
    assert log[-1]["step"] == 2
    assert all(math.isfinite(line["loss"]) for line in log)
    folder = artifact_path(plan, ending)
    weights = "model.safetensors" if plan.tuner.type == "Full" else "adapter_model.safetensors"
    assert (folder / weights).stat().st_size > 0
    assert json.loads((folder / "manifest.json").read_text())["planDigest"]
    assert changed(plan, folder, base), "nothing was learned"


def changed(plan: TrainPlan, folder: Path, tiny: Path) -> bool:
    """Whether any weight differs from what it was: a LoRA's B begins at zero."""
    from safetensors.torch import load_file

    if plan.tuner.type != "Full":
        found = load_file(folder / "adapter_model.safetensors")
        return any(bool(tensor.any()) for name, tensor in found.items() if "lora_A" not in name)
    before, after = load_file(tiny / "model.safetensors"), load_file(folder / "model.safetensors")
    same = {name.removeprefix("model.") for name in before} & {name.removeprefix("model.") for name in after}
    old = {name.removeprefix("model."): tensor for name, tensor in before.items()}
    new = {name.removeprefix("model."): tensor for name, tensor in after.items()}
    return any(not bool((old[name].float() == new[name].float()).all()) for name in same)
