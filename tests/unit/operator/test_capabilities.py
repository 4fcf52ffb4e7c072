"""The table of what works with what: each refusal reaches the user, and what is unverified says how to see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from tunesmith.api.finetunejob import FineTuneJobSpec
from tunesmith.api.methods import Method, MethodType
from tunesmith.api.training import Truncation
from tunesmith.training.capabilities import AXES, UNVERIFIED, Cell, Modality, Refused, cell_of, cells, name, verdict
from tunesmith.training.evaluating import METRICS, UNMEASURED, metrics_of
from tunesmith.training.matrix import PlanError, refuse, unsplit
from tunesmith.training.planning import packed

ROOT = Path(__file__).parents[3]
REWARDS = {"rewards": [{"type": "Accuracy"}]}
NEEDED: dict[str, dict[str, Any]] = {
    "GRPO": {"grpo": REWARDS},
    "PPO": {"ppo": REWARDS},
    "GKD": {"gkd": {"teacher": {"uri": "pvc://models/teacher"}}},
    "Classification": {"classification": {"labels": ["warm", "cold"]}},
}
GPU = {"limits": {"nvidia.com/gpu": "1"}}
GPUS = {"limits": {"nvidia.com/gpu": "4"}}
SHARED: dict[str, dict[str, int]] = {"Data": {}, "Sequence": {"sequenceParallel": 2}, "Tensor": {"tensorParallel": 2}}


def spec_of(cell: Cell) -> FineTuneJobSpec:
    """The shortest spec of a combination."""
    method: dict[str, Any] = {"type": cell.method, **NEEDED.get(cell.method, {})}
    if cell.rollout != "Transformers":
        member = method[cell.method.lower()]
        method[cell.method.lower()] = {**member, "rollout": {"backend": cell.rollout}}
    return FineTuneJobSpec.model_validate(
        {
            "model": {"uri": "pvc://models/base"},
            "datasets": [{"uri": "pvc://data/train.jsonl"}],
            "method": method,
            "tuner": {"type": cell.tuner},
            "training": {"microBatchSize": 2},
            "distribution": {"strategy": cell.strategy, **SHARED[cell.parallelism]},
            "processesPerNode": 2 if cell.strategy == "FSDP2" or cell.parallelism != "Data" else 1,
            "nodes": 2 if cell.nodes == "SeveralNodes" else 1,
            "resources": GPUS if cell.strategy == "DeviceMap" else GPU if cell.rollout != "Transformers" else {},
        }
    )


def modality(cell: Cell) -> Modality:
    """The cell's, as the type that it is of."""
    return next(value for value in get_args(Modality) if value == cell.modality)


@pytest.mark.parametrize("cell", cells(), ids=name)
def test_a_combination_is_refused_exactly_where_the_table_says_so(cell: Cell) -> None:
    spec, found = spec_of(cell), verdict(cell)
    assert cell_of(spec, modality(cell), cell.base) == cell
    if isinstance(found, Refused):
        with pytest.raises(PlanError) as raised:
            refuse(spec, modality(cell), cell.base)
        assert str(raised.value) == f"{found.field}: {found.why}: {found.instead}"
    else:
        refuse(spec, modality(cell), cell.base)


def test_each_value_of_each_axis_is_met() -> None:
    met = list(cells())
    for axis, values in AXES.items():
        assert {getattr(cell, axis) for cell in met} == set(values)
    assert len({name(cell) for cell in met}) == len(met)


def test_what_is_unverified_has_its_row_in_the_docs() -> None:
    rows = (ROOT / "docs" / "gpu-verification.md").read_text()
    assert not [entry.row for entry in UNVERIFIED if f"| {entry.row} |" not in rows]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"tuner": {"type": "QLoRA", "quantization": "Int8"}, "distribution": {"strategy": "ZeRO3"}}, "Int8 weights"),
        ({"tuner": {"type": "QLoRA", "quantization": "Int8"}, "distribution": {"strategy": "FSDP2"}}, "Int8 weights"),
        ({"distribution": {"strategy": "FSDP2"}}, "and there is one: use DDP, or more of processesPerNode or nodes"),
        (
            {"distribution": {"strategy": "FSDP2"}, "nodes": 2, "training": {"optimizer": "AdamW8bit"}},
            "use AdamW, or strategy DDP or ZeRO3",
        ),
        ({"training": {"optimizer": "Adafactor"}, "distribution": {"strategy": "FSDP2"}}, "see whole"),
        ({"tuner": {"initialization": "PiSSA"}, "distribution": {"strategy": "ZeRO3"}}, "PiSSA is to decompose"),
        ({"tuner": {"type": "PEFT", "peft": {"type": "AdaLoRA"}}, "distribution": {"strategy": "ZeRO1"}}, "see whole"),
        (
            {
                "tuner": {"type": "Full"},
                "training": {"optimizer": "GaLore"},
                "distribution": {"offload": "Optimizer"},
            },
            "see whole",
        ),
        ({"training": {"optimizer": "APOLLO"}}, "use tuner Full"),
        ({"tuner": {"loraPlusRatio": 16}, "training": {"optimizer": "Adafactor"}}, "loraPlusRatio"),
        ({"tuner": {"type": "PEFT", "peft": {"type": "PTuning"}}, "method": {"type": "DPO"}}, "prompts put tokens"),
    ],
)
def test_what_a_tuner_or_an_optimizer_cannot_do_is_refused(parts: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        refuse(FineTuneJobSpec.model_validate(spec_of(Cell("SFT")).body() | parts))


FOUR = {"processesPerNode": 4}


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"distribution": {"strategy": "DeviceMap"}}, "two or more, and spec.resources.limits has not so many"),
        ({"distribution": {"strategy": "DeviceMap"}, "resources": GPU}, "ask for more GPUs, lower"),
        ({"distribution": {"strategy": "DeviceMap"}, "resources": GPUS, "processesPerNode": 4}, "use DDP"),
        (
            {"distribution": {"strategy": "DeviceMap"}, "resources": GPUS, "nodes": 2, "tuner": {"type": "QLoRA"}},
            "by one process only",
        ),
        ({"distribution": {"sequenceParallel": 2, "tensorParallel": 2}, "tuner": {"type": "Full"}} | FOUR, "together"),
        ({"distribution": {"sequenceParallel": 3}} | FOUR, "use a number that divides 4"),
        (
            {"distribution": {"tensorParallel": 2, "strategy": "DDP"}, "tuner": {"type": "Full"}} | FOUR,
            "use Auto or FSDP2",
        ),
        (
            {"distribution": {"tensorParallel": 4, "offload": "All"}, "tuner": {"type": "Full"}} | FOUR,
            "use offload None",
        ),
        (
            {
                "distribution": {"tensorParallel": 4},
                "tuner": {"type": "Full"},
                "training": {"optimizer": "Adafactor"},
            }
            | FOUR,
            "update weights that processes share",
        ),
        (
            {"distribution": {"tensorParallel": 4}, "tuner": {"type": "Full"}, "validation": {"split": 0.1}} | FOUR,
            "spec.validation: evaluations are not known",
        ),
        ({"distribution": {"sequenceParallel": 2}, "training": {"packing": "Always"}} | FOUR, "use Auto or Never"),
        (
            {"distribution": {"sequenceParallel": 2}, "tuner": {"type": "PEFT", "peft": {"type": "PTuning"}}} | FOUR,
            "prompts would stand before each part",
        ),
    ],
)
def test_processes_that_cannot_share_are_refused(parts: dict[str, Any], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        refuse(FineTuneJobSpec.model_validate(spec_of(Cell("SFT")).body() | parts))


@pytest.mark.parametrize(
    "parts",
    [
        {"distribution": {"strategy": "DeviceMap"}, "resources": GPUS},
        {"distribution": {"strategy": "DeviceMap"}, "resources": GPUS, "processesPerNode": 2, "nodes": 2},
        {"distribution": {"sequenceParallel": 4}, "validation": {"split": 0.1}} | FOUR,
        {"distribution": {"sequenceParallel": 2, "strategy": "ZeRO3", "offload": "All"}} | FOUR,
        {"distribution": {"tensorParallel": 2}, "tuner": {"type": "Full"}} | FOUR,
        {"distribution": {"tensorParallel": 4, "strategy": "DDP"}, "tuner": {"type": "Full"}} | FOUR,
    ],
)
def test_processes_that_can_share_are_not(parts: dict[str, Any]) -> None:
    refuse(FineTuneJobSpec.model_validate(spec_of(Cell("SFT")).body() | parts))


@pytest.mark.parametrize(
    ("method", "validation", "words"),
    [
        ("SFT", {"metric": "acuracy"}, "use one of loss, entropy, mean_token_accuracy"),
        ("SFT", {"metric": "rewards/accuracies"}, "spec.validation.metric: it is not measured by this method"),
        ("DPO", {"metric": "rewards/accuracies", "earlyStopping": {}}, None),
        ("Classification", {"metric": "accuracy"}, None),
        ("GRPO", {}, None),
        ("GRPO", {"metric": "reward"}, "leave out everySteps, metric, direction and earlyStopping"),
        ("PPO", {"earlyStopping": {"patience": 2}}, "their metrics are in every log line"),
        ("GKD", {"everySteps": 10}, "GRPO, PPO and GKD learn from answers of their own"),
        ("GKD", {"direction": "Minimize"}, "GRPO, PPO and GKD learn from answers of their own"),
    ],
)
def test_only_what_a_method_measures_is_evaluated(method: str, validation: dict[str, Any], words: str | None) -> None:
    spec = FineTuneJobSpec.model_validate(spec_of(Cell(method)).body() | {"validation": {"split": 0.1, **validation}})
    if words is None:
        refuse(spec)
    else:
        with pytest.raises(PlanError, match=words):
            refuse(spec)


@pytest.mark.parametrize(
    ("options", "metric"),
    [
        ({"classification": {"problem": "Regression"}}, "mean_absolute_error"),
        ({"classification": {"labels": ["a", "b"]}}, "accuracy"),
        ({"embedding": {"loss": "Cosine"}}, "mean_absolute_error"),
        ({"embedding": {"loss": "Contrastive"}}, "accuracy"),
        ({"embedding": {}}, "recall@1"),
    ],
)
def test_metrics_follow_from_the_methods_options(options: dict[str, Any], metric: str) -> None:
    [name] = options
    assert metrics_of(Method.model_validate({"type": name.capitalize(), **options})) == ("loss", metric)


def test_each_method_is_evaluated_or_said_not_to_be() -> None:
    assert {*METRICS, *UNMEASURED} == set(AXES["method"])
    assert not UNMEASURED & {*METRICS}


def test_auto_does_not_split_what_must_be_whole() -> None:
    for parts in ({"training": {"optimizer": "GaLore"}, "tuner": {"type": "Full"}}, {"tuner": {"type": "QLoRA"}}):
        spec = FineTuneJobSpec.model_validate(spec_of(Cell("SFT")).body() | parts)
        assert bool(unsplit(spec)) == ("training" in parts)


@pytest.mark.parametrize("method", get_args(MethodType))
def test_rows_become_tokens_lazily_only_where_each_does_by_itself(method: MethodType) -> None:
    def spec(**training: Any) -> FineTuneJobSpec:
        values = {"tokenization": "Lazy", "microBatchSize": 2, **training}
        return FineTuneJobSpec.model_validate(spec_of(Cell(method)).body() | {"training": values})

    if method not in {"PreTraining", "SFT", "DPO", "KTO", "CPO", "SimPO", "ORPO"}:
        with pytest.raises(PlanError, match=r"spec\.training\.tokenization: only rows of PreTraining, .*: use Cached"):
            refuse(spec())
        return
    refuse(spec())
    assert not packed(spec())
    assert packed(spec(tokenization="Cached")) == (method == "PreTraining")
    with pytest.raises(PlanError, match=r"spec\.training\.packing: .*: use Auto or Never"):
        refuse(spec(packing="Always"))
    with pytest.raises(PlanError, match=r"spec\.training\.truncation: .*: use Right"):
        refuse(spec(truncation="Split"))


STREAMED: dict[str, Any] = {"streaming": "Enabled", "maxSteps": 10, "microBatchSize": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"method": {"type": "PreTraining"}}, None),
        ({"training": {**STREAMED, "tokenization": "Lazy", "packing": "Always", "truncation": "Split"}}, None),
        ({"validation": {"datasets": [{"uri": "hf://org/name"}]}}, None),
        ({"method": {"type": "DPO"}}, r"spec\.training\.streaming: only rows of PreTraining and SFT .*: use Disabled"),
        ({"training": {**STREAMED, "maxSteps": None}}, r"spec\.training\.maxSteps: it is not set.*: set it"),
        ({"validation": {"split": 0.1}}, r"spec\.validation\.split: .*: use validation\.datasets"),
        ({"datasets": [{"uri": "pvc://data/a", "sample": 9}]}, r"spec\.datasets\.sample: .*: leave it out"),
        ({"datasets": [{"uri": "pvc://data/a"}, {"uri": "hf://org/name"}]}, r"spec\.datasets\.uri: .*pvc://claim/path"),
        ({"datasets": [{"uri": "s3://bucket/name"}]}, r"spec\.datasets\.uri: .*use streaming Disabled"),
    ],
)
def test_rows_are_streamed_where_no_look_at_all_of_them_is_needed(changes: dict[str, Any], message: str | None) -> None:
    body = spec_of(Cell("SFT")).body() | {"training": STREAMED}
    spec = FineTuneJobSpec.model_validate(body | changes)
    if message is None:
        refuse(spec)
        return
    with pytest.raises(PlanError, match=message):
        refuse(spec)


@pytest.mark.parametrize("method", get_args(MethodType))
@pytest.mark.parametrize("truncation", get_args(Truncation))
def test_rows_are_shortened_only_as_the_method_can_learn_from_them(method: MethodType, truncation: Truncation) -> None:
    refused = {
        "Split": set(get_args(MethodType)) - {"PreTraining", "SFT"},
        "Left": {"GRPO", "PPO", "GKD", "Reranker"},
    }
    spec = FineTuneJobSpec.model_validate(
        {
            "model": {"uri": "pvc://models/base"},
            "datasets": [{"uri": "pvc://data/train.jsonl"}],
            "method": {"type": method, **NEEDED.get(method, {})},
            "training": {"truncation": truncation, "microBatchSize": 2},
        }
    )
    if method in refused.get(truncation, ()):
        with pytest.raises(PlanError, match=r"spec\.training\.truncation: .*: use Right"):
            refuse(spec, "Text")
    else:
        refuse(spec, "Text")
