"""What a spec may not say beyond the combinations of capabilities.py: limits of numbers and options, as rules. A rule
says why, and what to do instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tunesmith.api.finetunejob import FineTuneJobSpec
from tunesmith.api.methods import GRPO, PPO
from tunesmith.training.capabilities import Modality, Refused, cell_of, verdict

GPUS = ("nvidia.com/gpu", "amd.com/gpu")


class PlanError(ValueError):
    """The spec cannot be carried out. The message names the field, what was found, and what to do."""


@dataclass(frozen=True)
class Rule:
    """A combination that is refused."""

    when: Callable[[FineTuneJobSpec], bool]
    field: str
    why: str
    instead: str | Callable[[FineTuneJobSpec], str]


POLICIES: dict[str, Callable[[FineTuneJobSpec], GRPO | PPO | None]] = {
    "grpo": lambda spec: spec.method.grpo,
    "ppo": lambda spec: spec.method.ppo,
}
"""The methods that learn from rewards."""


def colocated_without_gpus(name: str) -> Callable[[FineTuneJobSpec], bool]:
    """Whether vLLM is to run where there is no GPU."""

    def check(spec: FineTuneJobSpec) -> bool:
        policy = POLICIES[name](spec)
        has = any(gpu in (spec.resources.limits or {}) for gpu in GPUS)
        return policy is not None and policy.rollout.backend == "VLLMColocate" and not has

    return check


def answer_length(spec: FineTuneJobSpec) -> int:
    """Tokens that the model answers with at most while it trains; 0: it does not answer."""
    if spec.method.gkd:
        return spec.method.gkd.max_completion_length
    rewarded = spec.method.grpo or spec.method.ppo
    return rewarded.rollout.max_completion_length if rewarded else 0


def batches(spec: FineTuneJobSpec) -> str:
    """Global batches of whole groups of answers, nearest to the one asked for."""
    each = spec.method.grpo.num_generations if spec.method.grpo else 1
    below = spec.training.global_batch_size // each * each
    return f"use {f'{below} or ' if below else ''}{below + each}, or another numGenerations"


RULES = (
    Rule(
        lambda spec: spec.tuner.type == "QLoRA" and spec.distribution.offload == "All",
        "spec.distribution.offload",
        "All needs ZeRO3, which cannot split the quantised weights of tuner QLoRA",
        "use None or Optimizer, or tuner LoRA",
    ),
    Rule(
        lambda spec: spec.training.packing == "Always" and spec.method.type not in {"PreTraining", "SFT"},
        "spec.training.packing",
        "only PreTraining and SFT can put several rows into one sequence",
        "use Auto or Never",
    ),
    Rule(
        lambda spec: bool(spec.method.grpo and spec.training.global_batch_size % spec.method.grpo.num_generations),
        "spec.training.globalBatchSize",
        "it counts answers, and must be a multiple of spec.method.grpo.numGenerations",
        batches,
    ),
    Rule(
        lambda spec: spec.method.type == "KTO" and spec.training.micro_batch_size < 2,
        "spec.training.microBatchSize",
        "KTO estimates the divergence over a micro-batch of two rows at least",
        "use 2 or more",
    ),
    Rule(
        lambda spec: spec.method.type == "PPO" and spec.training.global_batch_size < 2,
        "spec.training.globalBatchSize",
        "PPO learns from two answers at least",
        "use 2 or more",
    ),
    Rule(
        lambda spec: bool(answer_length(spec)) and answer_length(spec) >= spec.training.max_length,
        "spec.training.maxLength",
        "it counts the prompt and the answer, and must be above maxCompletionLength",
        lambda spec: f"raise it above {answer_length(spec)}, or lower maxCompletionLength",
    ),
    *(
        Rule(
            colocated_without_gpus(name),
            f"spec.method.{name}.rollout.backend",
            "VLLMColocate runs vLLM in the training processes, which needs GPUs, and spec.resources.limits has none",
            "ask for nvidia.com/gpu there, or use backend Transformers",
        )
        for name in POLICIES
    ),
)


def refuse(spec: FineTuneJobSpec, modality: Modality = "Text") -> None:
    """Raise PlanError for a refused combination, or for the first rule that the spec breaks."""
    found = verdict(cell_of(spec, modality))
    if isinstance(found, Refused):
        raise PlanError(str(found))
    for rule in RULES:
        if rule.when(spec):
            instead = rule.instead if isinstance(rule.instead, str) else rule.instead(spec)
            raise PlanError(f"{rule.field}: {rule.why}: {instead}")
