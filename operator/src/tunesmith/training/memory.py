"""Whether a training fits its devices, how it must be spread for that, and what would fit where it does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tunesmith.api.finetunejob import MemoryStatus
from tunesmith.training.architecture import ModelFacts
from tunesmith.training.estimating import GIB, Estimate, estimate
from tunesmith.training.matrix import answer_length, min_rows, unsplit, whole_weights
from tunesmith.training.plan import DistributionPlan, TrainPlan, TunerPlan
from tunesmith.training.planning import nodes_that_divide

__all__ = ["Choice", "Estimate", "choose", "estimate"]

Strategy = Literal["Auto", "DDP", "DeviceMap", "FSDP2", "ZeRO1", "ZeRO2", "ZeRO3"]
Offload = Literal["None", "Optimizer", "All"]
OFFLOADS: tuple[Offload, ...] = ("Optimizer", "All")
SHORTEST = 256  # tokens, beside those of an answer; nobody trains on less
MOST_NODES = 64
LEAST_ADVICE = 3


@dataclass(frozen=True)
class Choice:
    """How to spread the model, and what that takes."""

    distribution: DistributionPlan
    status: MemoryStatus
    fits: bool | None
    """None: how much memory a device has is not known."""


@dataclass(frozen=True)
class Way:
    """One way to train, and what it takes."""

    distribution: DistributionPlan
    needs: Estimate


@dataclass(frozen=True)
class Change:
    """Another plan, and in words what is different."""

    text: str
    plan: TrainPlan


def choose(
    plan: TrainPlan,
    facts: ModelFacts,
    strategy: Strategy,
    offload: Offload,
    per_device: int | None,
    cpu: bool = False,
) -> Choice:
    """The asked strategy, or for Auto the first that fits; with `cpu` there are no accelerators."""
    way, fits = _first_fit(plan, facts, strategy, offload, per_device, cpu)
    needs = way.needs
    status = MemoryStatus(
        strategy=name_of(way.distribution),
        weights_bytes=needs.weights,
        gradients_bytes=needs.gradients,
        optimizer_bytes=needs.optimizer,
        activations_bytes=needs.activations,
        overhead_bytes=needs.overhead,
        total_bytes=needs.total,
        available_bytes=per_device,
        summary=_summary(plan, facts, way, per_device, cpu, fits, (strategy, offload)),
    )
    return Choice(way.distribution, status, fits)


def name_of(distribution: DistributionPlan) -> str:
    """For people: ZeRO3, offload All."""
    words: list[str] = [distribution.strategy]
    if distribution.offload != "None":
        words.append(f"offload {distribution.offload}")
    if distribution.sequence_parallel > 1:
        words.append(f"sequenceParallel {distribution.sequence_parallel}")
    if distribution.tensor_parallel > 1:
        words.append(f"tensorParallel {distribution.tensor_parallel}")
    return ", ".join(words)


def candidates(
    plan: TrainPlan, facts: ModelFacts, strategy: Strategy, offload: Offload, cpu: bool
) -> list[DistributionPlan]:
    """The distributions that are to be tried, the fastest first."""
    if strategy == "Auto" and facts.quantized:
        strategy = "DDP"
    if strategy != "Auto":
        return [plan.distribution.model_copy(update={"strategy": strategy, "offload": offload})]
    if plan.distribution.tensor_parallel > 1:
        return [plan.distribution.model_copy(update={"strategy": "FSDP2" if plan.data_parallel > 1 else "DDP"})]
    zero2, zero3 = ([name] if name not in unsplit(plan) else [] for name in ("ZeRO2", "ZeRO3"))
    found: list[tuple[str, Offload]]
    if offload == "None":
        found = [(name, "None") for name in ["DDP", *(zero2 + zero3 if plan.world_size > 1 else [])]]
        if not cpu:  # on CPU there is nowhere else to put it
            found += [(name, to) for name in zero3 for to in OFFLOADS]
    else:
        found = [(name, offload) for name in (zero2 + zero3 if offload == "Optimizer" else zero3)]
    return [plan.distribution.model_copy(update={"strategy": s, "offload": o, "devices": 1}) for s, o in found]


def _first_fit(
    plan: TrainPlan, facts: ModelFacts, strategy: Strategy, offload: Offload, per_device: int | None, cpu: bool
) -> tuple[Way, bool | None]:
    """The first way that fits, else the smallest. Where the memory is not known, the first."""
    ways = [Way(one, estimate(plan, facts, one, cpu)) for one in candidates(plan, facts, strategy, offload, cpu)]
    if per_device is None:
        return ways[0], None
    fitting = next((way for way in ways if way.needs.total <= per_device), None)
    return (fitting, True) if fitting else (min(ways, key=lambda way: way.needs.total), False)


def _summary(
    plan: TrainPlan,
    facts: ModelFacts,
    way: Way,
    per_device: int | None,
    cpu: bool,
    fits: bool | None,
    asked: tuple[Strategy, Offload],
) -> str:
    needs, device = way.needs, "process" if cpu else "device"
    parts = (
        f"weights {_gib(needs.weights)}, gradients {_gib(needs.gradients)}, optimizer {_gib(needs.optimizer)}, "
        f"activations {_gib(needs.activations)}, other {_gib(needs.overhead)}"
    )
    host = f"; and {_gib(needs.host)} GiB of the host's memory per pod" if needs.host else ""
    name = name_of(way.distribution)
    if per_device is None or fits:
        of = "" if per_device is None else f" of {_gib(per_device)}"
        return f"{name}: {_gib(needs.total)}{of} GiB per {device} ({parts}){host}"
    return (
        f"does not fit: {name} needs {_gib(needs.total)} GiB per {device}, which has {_gib(per_device)} ({parts}). "
        + advice(plan, facts, per_device, needs.total, cpu, asked)
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.1f}" if size < 1000 * GIB else f"{size / GIB:.0f}"


def advice(
    plan: TrainPlan, facts: ModelFacts, per_device: int, needs: int, cpu: bool, asked: tuple[Strategy, Offload]
) -> str:
    """What would fit, by the same estimate, the smallest change first. Where that is little: what comes closest."""
    fitting, others = [], []
    for change in _changes(plan, facts, per_device, cpu, asked):
        way, fits = _first_fit(change.plan, facts, "Auto", "None", per_device, cpu)
        text = f"{change.text} ({name_of(way.distribution)}: {_gib(way.needs.total)} GiB)"
        if fits:
            fitting.append(text)
        elif way.needs.total < needs:
            others.append((way.needs.total, text))
    words = "Would fit: " + "; or ".join(fitting) + ". " if fitting else "No single change suffices. "
    if len(fitting) < LEAST_ADVICE and others:
        closest = [text for _, text in sorted(others)[: LEAST_ADVICE - len(fitting)]]
        words += "Closest of what does not: " + "; ".join(closest) + "."
    return words.rstrip()


def _changes(
    plan: TrainPlan, facts: ModelFacts, per_device: int, cpu: bool, asked: tuple[Strategy, Offload]
) -> Iterator[Change]:
    """Other plans: of each kind the smallest step that fits, else the largest."""
    training = plan.training
    if asked != ("Auto", "None"):
        yield Change("distribution.strategy Auto", plan)
    if not training.gradient_checkpointing:
        yield Change("gradientCheckpointing Enabled", _trained(plan, gradient_checkpointing=True))
    rows, shortest = min_rows(plan), min(SHORTEST + answer_length(plan), training.max_length)
    smaller = [
        Change(f"microBatchSize {size}", _trained(plan, micro_batch_size=size))
        for size in _halves(training.micro_batch_size, rows)
    ]
    shorter = [
        Change(f"maxLength {length}", _trained(plan, max_length=length))
        for length in _halves(training.max_length, shortest)
    ]
    wider = [
        Change(f"nodes {nodes}", plan.model_copy(update={"nodes": nodes}))
        for nodes in _doubles(plan.nodes, MOST_NODES)
        if nodes_that_divide(plan, nodes, nodes)
    ]
    for series in (smaller, shorter, wider):
        if series:
            fit = (one for one in series if _first_fit(one.plan, facts, "Auto", "None", per_device, cpu)[1])
            yield next(fit, series[-1])
    least = _trained(plan, micro_batch_size=rows, max_length=shortest, gradient_checkpointing=True)
    words = f"microBatchSize {rows}, maxLength {shortest} and gradientCheckpointing"
    if least.training != training:
        yield Change(f"{words} Enabled together", least)
    for kind in ("LoRA", "QLoRA"):
        if kind == plan.tuner.type or plan.tuner.type in ("QLoRA", "PEFT") or facts.quantized or whole_weights(plan):
            continue
        tuner = TunerPlan(
            type=kind,
            rank=plan.tuner.rank or 8,
            alpha=plan.tuner.alpha or 32,
            dropout=plan.tuner.dropout or 0.05,
            target_modules=plan.tuner.target_modules,
            quantization="NF4" if kind == "QLoRA" else None,
        )
        lighter = Change(f"tuner {kind}", plan.model_copy(update={"tuner": tuner}))
        if _first_fit(lighter.plan, facts, "Auto", "None", per_device, cpu)[1] or plan.training == least.training:
            yield lighter
        else:
            yield Change(f"tuner {kind} with {words}", least.model_copy(update={"tuner": tuner}))


def _trained(plan: TrainPlan, **values: int | bool) -> TrainPlan:
    return plan.model_copy(update={"training": plan.training.model_copy(update=values)})


def _halves(value: int, least: int) -> list[int]:
    found = []
    while value // 2 >= least:
        value //= 2
        found.append(value)
    return found


def _doubles(value: int, most: int) -> list[int]:
    found = []
    while value * 2 <= most:
        value *= 2
        found.append(value)
    return found
