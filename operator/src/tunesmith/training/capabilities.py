"""What works with what: the one table over method, tuner, strategy, nodes, modality, rollout and base. The operator
refuses by it, docs/capabilities.md is written from it, and tests/matrix runs what it calls supported.

A new value of an axis that is read from the API is supported with everything as soon as the API has it; exceptions go
to REFUSED and UNVERIFIED.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from tunesmith.api.distribution import Distribution
from tunesmith.api.finetunejob import FineTuneJobSpec
from tunesmith.api.methods import MethodType, Rollout
from tunesmith.api.tuner import Tuner

Modality = Literal["Text", "Image", "Video", "Audio"]


def _choices(model: type[Any], field: str) -> tuple[str, ...]:
    return get_args(model.model_fields[field].annotation)


FULL_PRECISION = "FullPrecision"
BASES: Mapping[str, str] = {
    "compressed-tensors": "CompressedTensors",
    "bitsandbytes": "BitsAndBytes",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "aqlm": "AQLM",
    "hqq": "HQQ",
    "eetq": "EETQ",
}
"""quant_method of a config.json -> base. Others are refused where the model is looked at."""
QUANTIZED = tuple(BASES.values())
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "GPTQ": ("gptqmodel", "optimum"),
    "AWQ": ("gptqmodel", "optimum"),
}
"""Packages that hold a base's layers, and are not in the trainer's image."""

AXES: Mapping[str, tuple[str, ...]] = {
    "method": get_args(MethodType),
    "tuner": _choices(Tuner, "type"),
    "strategy": tuple(name for name in _choices(Distribution, "strategy") if name != "Auto"),
    "parallelism": ("Data", "Sequence", "Tensor"),
    "nodes": ("OneNode", "SeveralNodes"),
    "modality": get_args(Modality),
    "rollout": _choices(Rollout, "backend"),
    "base": (FULL_PRECISION, *QUANTIZED),
}
"""All values, by axis."""
ROLLING = ("GRPO", "PPO")
"""Methods with a choice of rollout backends."""
OVER_QUANTIZED = ("PreTraining", "SFT", "DPO")
"""Methods whose adapters may be trained over a base that is quantised already."""
OTHER_THAN_LANGUAGE_MODELING = tuple(name for name in AXES["method"] if name not in ("PreTraining", "SFT"))


@dataclass(frozen=True)
class Cell:
    """One combination."""

    method: str
    tuner: str = "LoRA"
    strategy: str = "DDP"
    parallelism: str = "Data"
    nodes: str = "OneNode"
    modality: str = "Text"
    rollout: str = "Transformers"
    base: str = FULL_PRECISION

    def within(self, where: Mapping[str, tuple[str, ...]]) -> bool:
        """Whether it has one of the values of each axis of `where`."""
        return all(getattr(self, axis) in values for axis, values in where.items())


@dataclass(frozen=True)
class Refused:
    """Combinations that are not carried out."""

    where: Mapping[str, tuple[str, ...]]
    """Values by axis."""
    field: str
    why: str
    instead: str

    def __str__(self) -> str:
        return f"{self.field}: {self.why}: {self.instead}"


@dataclass(frozen=True)
class Unverified:
    """Combinations that are carried out, but need a GPU to be seen."""

    where: Mapping[str, tuple[str, ...]]
    """Values by axis."""
    row: str
    """The row of docs/gpu-verification.md with the command that would show it."""

    def __str__(self) -> str:
        return f"needs a GPU: {self.row}"


REFUSED = (
    Refused(
        {"modality": ("Image", "Video", "Audio"), "rollout": ("VLLMColocate",)},
        "spec.method.grpo.rollout.backend",
        "vLLM in the training processes is not given a row's media yet",
        "use backend Transformers",
    ),
    Refused(
        {"parallelism": ("Sequence", "Tensor"), "method": OTHER_THAN_LANGUAGE_MODELING},
        "spec.distribution",
        "only the losses of PreTraining and SFT are known to come out the same where processes share rows or weights",
        "leave out sequenceParallel and tensorParallel, and use strategy FSDP2 or ZeRO3",
    ),
    Refused(
        {"parallelism": ("Sequence", "Tensor"), "modality": ("Image", "Video", "Audio")},
        "spec.distribution",
        "towers of multi-modal models have no plan for shared rows or weights",
        "leave out sequenceParallel and tensorParallel, and use strategy FSDP2 or ZeRO3",
    ),
    Refused(
        {"parallelism": ("Tensor",), "tuner": ("LoRA", "PEFT", "QLoRA")},
        "spec.distribution.tensorParallel",
        "the gradients of adapters over shared weights are not those of one process",
        "use tuner Full, or strategy FSDP2",
    ),
    Refused(
        {"parallelism": ("Tensor",), "strategy": ("ZeRO1", "ZeRO2", "ZeRO3")},
        "spec.distribution.strategy",
        "DeepSpeed cannot split weights that are shared already",
        "use Auto or FSDP2",
    ),
    Refused(
        {"parallelism": ("Sequence", "Tensor"), "strategy": ("DeviceMap",)},
        "spec.distribution.strategy",
        "DeviceMap gives each process GPUs, layers and rows of its own",
        "use Auto or FSDP2",
    ),
    Refused(
        {"base": QUANTIZED, "tuner": tuple(name for name in AXES["tuner"] if name != "LoRA")},
        "spec.tuner.type",
        "the model is quantised already: its weights are neither trained nor quantised anew",
        "use LoRA, or the model's full-precision release",
    ),
    Refused(
        {"base": QUANTIZED, "method": tuple(name for name in AXES["method"] if name not in OVER_QUANTIZED)},
        "spec.model",
        f"the model is quantised already, over which only {', '.join(OVER_QUANTIZED)} are known to learn",
        "use the model's full-precision release",
    ),
    Refused(
        {"base": QUANTIZED, "strategy": tuple(name for name in AXES["strategy"] if name != "DDP")},
        "spec.distribution.strategy",
        "the model is quantised already, and is loaded whole by each process",
        "use DDP, or the model's full-precision release",
    ),
    Refused(
        {"base": QUANTIZED, "parallelism": ("Sequence", "Tensor")},
        "spec.distribution",
        "the model is quantised already, and is loaded whole by each process",
        "leave out sequenceParallel and tensorParallel, or use the model's full-precision release",
    ),
    Refused(
        {"base": ("AQLM",)},
        "spec.model",
        "transformers 5.19 takes the output head of an AQLM checkpoint for quantised, and fills it at random",
        "use the model's full-precision release, or one of compressed-tensors or bitsandbytes",
    ),
    Refused(
        {"base": ("HQQ",)},
        "spec.model",
        "transformers 5.19 does not load layers of HQQ",
        "use the model's full-precision release, or one of compressed-tensors or bitsandbytes",
    ),
    Refused(
        {"base": ("EETQ",)},
        "spec.model",
        "transformers 5.19 fetches EETQ's kernel from a hub, which a training pod does not reach",
        "use the model's full-precision release, or one of compressed-tensors or bitsandbytes",
    ),
)
UNVERIFIED = (
    Unverified({"strategy": ("DeviceMap",)}, "`strategy: DeviceMap`, one process over 2 GPUs, and two over 2 each"),
    Unverified({"rollout": ("VLLMColocate",)}, "GRPO with `rollout.backend: VLLMColocate`"),
    Unverified({"base": ("GPTQ", "AWQ")}, "LoRA over GPTQ and AWQ checkpoints, by gptqmodel's kernels for GPUs"),
)


def verdict(cell: Cell) -> Refused | Unverified | None:
    """Why a combination is refused, or what it takes to see it. None: it is supported, and tested on CPU."""
    return next((entry for entry in (*REFUSED, *UNVERIFIED) if cell.within(entry.where)), None)


def quantizer(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """How a config.json says that its weights are quantised; empty where they are not."""
    found = config.get("quantization_config") or {}
    return found if isinstance(found, dict) else {"quant_method": found}


def base_of(config: Mapping[str, Any]) -> str | None:
    """The base that a config.json describes; None for one that is quantised in a way that is not in the table."""
    found = quantizer(config)
    return BASES.get(str(found.get("quant_method"))) if found else FULL_PRECISION


def packed_as(config: Mapping[str, Any]) -> Literal["NF4", "Int8"] | None:
    """As how much memory the weights of a base are counted that stay quantised: as those of QLoRA with as many bits."""
    if base_of(config) in (FULL_PRECISION, "CompressedTensors"):
        return None
    found = quantizer(config)
    return "Int8" if found.get("load_in_8bit") or found.get("bits") == 8 else "NF4"


def cell_of(spec: FineTuneJobSpec, modality: Modality = "Text", base: str = FULL_PRECISION) -> Cell:
    """The combination that a spec asks for. Strategy Auto is DDP until the estimate of memory says otherwise."""
    strategy, policy = spec.distribution.strategy, spec.method.grpo or spec.method.ppo
    return Cell(
        method=spec.method.type,
        tuner=spec.tuner.type,
        strategy="DDP" if strategy == "Auto" else strategy,
        parallelism="Tensor"
        if spec.distribution.tensor_parallel > 1
        else ("Sequence" if spec.distribution.sequence_parallel > 1 else "Data"),
        nodes="SeveralNodes" if spec.nodes > 1 else "OneNode",
        modality=modality,
        rollout=policy.rollout.backend if policy else "Transformers",
        base=base,
    )


def axes_of(method: str) -> list[str]:
    """The axes along which a method is told apart."""
    return [axis for axis in AXES if axis != "method" and (axis != "rollout" or method in ROLLING)]


def cells() -> list[Cell]:
    """The combinations that tests go through: every method with every value of each axis, the others as usual; and SFT
    with every pair of tuner, strategy and parallelism, since what these do to each other does not depend on the method.
    """
    seen: dict[Cell, None] = {}
    for method in AXES["method"]:
        usual = Cell(method)
        for axis in axes_of(method):
            seen |= {replace(usual, **{axis: value}): None for value in AXES[axis]}
    seen |= {Cell("SFT", tuner, strategy): None for tuner in AXES["tuner"] for strategy in AXES["strategy"]}
    shared = AXES["parallelism"][1:]
    seen |= {Cell("SFT", tuner, parallelism=one): None for tuner in AXES["tuner"] for one in shared}
    seen |= {Cell("SFT", tuner, base="CompressedTensors"): None for tuner in AXES["tuner"]}
    seen |= {Cell("SFT", strategy=strategy, base="CompressedTensors"): None for strategy in AXES["strategy"]}
    seen |= {Cell("SFT", "Full", strategy, one): None for strategy in AXES["strategy"] for one in shared}
    return list(seen)


def name(cell: Cell) -> str:
    """For people and for tests: what is not as usual is named, for example DPO-Full."""
    usual = asdict(Cell(cell.method))
    return "-".join([cell.method, *(value for axis, value in asdict(cell).items() if value != usual[axis])])
