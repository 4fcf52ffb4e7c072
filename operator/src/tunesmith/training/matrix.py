"""Which combinations work: one table. A combination that is refused says why, and what to do instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tunesmith.api.finetunejob import FineTuneJobSpec

# Methods that this version of the trainer carries out.
CARRIED_OUT = frozenset({"PreTraining", "SFT"})


class PlanError(ValueError):
    """The spec cannot be carried out. The message names the field, what was found, and what to do."""


@dataclass(frozen=True)
class Rule:
    """A combination that is refused."""

    when: Callable[[FineTuneJobSpec], bool]
    field: str
    why: str
    instead: str


RULES = (
    Rule(
        lambda spec: spec.method.type not in CARRIED_OUT,
        "spec.method.type",
        "this version of the trainer does not carry it out yet",
        f"use one of {', '.join(sorted(CARRIED_OUT))}",
    ),
    Rule(
        lambda spec: spec.tuner.type == "QLoRA" and spec.distribution.strategy == "ZeRO3",
        "spec.distribution.strategy",
        "ZeRO3 cannot split the quantised weights of tuner QLoRA",
        "use Auto, DDP or ZeRO2, or tuner LoRA",
    ),
    Rule(
        lambda spec: spec.training.packing == "Always" and spec.method.type not in {"PreTraining", "SFT"},
        "spec.training.packing",
        "only PreTraining and SFT can put several rows into one sequence",
        "use Auto or Never",
    ),
)


def refuse(spec: FineTuneJobSpec) -> None:
    """Raise PlanError for the first rule that the spec breaks."""
    for rule in RULES:
        if rule.when(spec):
            raise PlanError(f"{rule.field}: {rule.why}: {rule.instead}")
