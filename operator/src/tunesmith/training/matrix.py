"""What a spec may not say beyond the combinations of capabilities.py: limits of numbers and options, as rules. A rule
says why, and what to do instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tunesmith.api.finetunejob import FineTuneJobSpec
from tunesmith.api.methods import GRPO, PPO
from tunesmith.training.capabilities import FULL_PRECISION, Modality, Refused, cell_of, verdict
from tunesmith.training.evaluating import UNMEASURED, asks, metrics_of
from tunesmith.training.location import locate
from tunesmith.training.plan import TrainPlan
from tunesmith.training.trainable import PROMPTS

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


def answer_length(job: FineTuneJobSpec | TrainPlan) -> int:
    """Tokens that the model answers with at most while it trains; 0: it does not answer."""
    if job.method.gkd:
        return job.method.gkd.max_completion_length
    rewarded = job.method.grpo or job.method.ppo
    return rewarded.rollout.max_completion_length if rewarded else 0


def min_rows(job: FineTuneJobSpec | TrainPlan) -> int:
    """Rows of the smallest micro-batch that the method learns from."""
    return 2 if job.method.type == "KTO" else 1


def whole_weights(plan: TrainPlan) -> bool:
    """Whether the plan is for tuner Full only: adapters are refused with what else it says."""
    return plan.distribution.tensor_parallel > 1 or plan.training.optimizer in PROJECTING


def batches(spec: FineTuneJobSpec) -> str:
    """Global batches of whole groups of answers, nearest to the one asked for."""
    each = spec.method.grpo.num_generations if spec.method.grpo else 1
    below = spec.training.global_batch_size // each * each
    return f"use {f'{below} or ' if below else ''}{below + each}, or another numGenerations"


SHARING = ("FSDP2", "ZeRO1", "ZeRO2", "ZeRO3")
PROJECTING = ("GaLore", "APOLLO")
WHOLE = ("Adafactor", *PROJECTING)
LAZY = ("PreTraining", "SFT", "DPO", "KTO", "CPO", "SimPO", "ORPO")
"""Methods whose rows become tokens one by one, whatever the others are."""
EIGHT_BIT = ("AdamW8bit", "PagedAdamW8bit")


def lazy(spec: FineTuneJobSpec) -> bool:
    """Whether a row that is in the table becomes tokens when it is drawn."""
    return spec.training.tokenization == "Lazy" and not streamed(spec)


def streamed(spec: FineTuneJobSpec) -> bool:
    """Whether rows are read as they are learned from."""
    return spec.training.streaming == "Enabled"


def unsplit(job: FineTuneJobSpec | TrainPlan) -> tuple[str, ...]:
    """The strategies that would split what the tuner or the optimizer must see whole."""
    if job.training.optimizer in WHOLE or (job.tuner.peft and job.tuner.peft.type == "AdaLoRA"):
        return SHARING
    if job.tuner.quantization == "Int8":
        return ("FSDP2", "ZeRO3")
    return ("ZeRO3",) if job.tuner.initialization == "PiSSA" else ()


def gpus(spec: FineTuneJobSpec) -> int:
    """GPUs of a pod."""
    limits = spec.resources.limits or {}
    return next((int(limits[name]) for name in GPUS if name in limits), 0)


def processes_per_node(spec: FineTuneJobSpec) -> int:
    """Training processes of a pod: as asked, else one per GPU (one in all for DeviceMap), else one."""
    each = 0 if spec.distribution.strategy == "DeviceMap" else gpus(spec)
    return spec.processes_per_node or each or 1


def devices(spec: FineTuneJobSpec) -> int:
    """GPUs over which one process lays its model out; 1 for any strategy but DeviceMap."""
    return gpus(spec) // processes_per_node(spec) if spec.distribution.strategy == "DeviceMap" else 1


def sharing(spec: FineTuneJobSpec) -> int:
    """Processes that work on the same rows."""
    return spec.distribution.sequence_parallel * spec.distribution.tensor_parallel


def groups(spec: FineTuneJobSpec) -> float:
    """Processes, or groups of those that share, with rows of their own; must be whole."""
    return spec.nodes * processes_per_node(spec) / sharing(spec)


RULES = (
    Rule(
        lambda spec: (
            "ZeRO3" in unsplit(spec)
            and "ZeRO2" not in unsplit(spec)
            and (spec.distribution.strategy in unsplit(spec) or spec.distribution.offload == "All")
        ),
        "spec.distribution",
        "ZeRO3 and FSDP2 cannot split Int8 weights, nor ZeRO3 those that PiSSA is to decompose",
        "use Auto, DDP or ZeRO2 with offload None or Optimizer, or another quantization or initialization",
    ),
    Rule(
        lambda spec: (
            unsplit(spec) == SHARING and (spec.distribution.strategy in SHARING or spec.distribution.offload != "None")
        ),
        "spec.distribution",
        "it splits tensors that AdaLoRA, and the optimizers Adafactor, GaLore and APOLLO, must see whole",
        "use Auto or DDP, or another tuner or optimizer",
    ),
    Rule(
        lambda spec: spec.distribution.strategy == "FSDP2" and spec.nodes * processes_per_node(spec) == 1,
        "spec.distribution.strategy",
        "FSDP2 shares the weights out among processes, and there is one",
        "use DDP, or more of processesPerNode or nodes",
    ),
    Rule(
        lambda spec: spec.distribution.strategy == "FSDP2" and spec.training.optimizer in EIGHT_BIT,
        "spec.training.optimizer",
        "bitsandbytes' optimizers cannot update the tensors that FSDP2 shares out",
        "use AdamW, or strategy DDP or ZeRO3",
    ),
    Rule(
        lambda spec: (
            spec.distribution.strategy == "DeviceMap" and (devices(spec) < 2 or bool(gpus(spec) % devices(spec)))
        ),
        "spec.distribution.strategy",
        "DeviceMap lays a model over the GPUs of each process, two or more, and spec.resources.limits has not so many "
        "for each",
        "ask for more GPUs, lower spec.processesPerNode, or use DDP",
    ),
    Rule(
        lambda spec: (
            spec.distribution.strategy == "DeviceMap"
            and spec.tuner.type == "QLoRA"
            and spec.nodes * processes_per_node(spec) > 1
        ),
        "spec.distribution.strategy",
        "quantised weights over several GPUs can be trained by one process only",
        "use one node and processesPerNode 1, or FSDP2",
    ),
    Rule(
        lambda spec: min(spec.distribution.sequence_parallel, spec.distribution.tensor_parallel) > 1,
        "spec.distribution",
        "sequenceParallel and tensorParallel are not carried out together",
        "use one of them",
    ),
    Rule(
        lambda spec: not groups(spec).is_integer(),
        "spec.distribution",
        "sequenceParallel and tensorParallel count processes, and must divide all of them",
        lambda spec: f"use a number that divides {spec.nodes * processes_per_node(spec)}, or other nodes",
    ),
    Rule(
        lambda spec: spec.distribution.tensor_parallel > 1 and spec.distribution.strategy == "DDP" and groups(spec) > 1,
        "spec.distribution.strategy",
        "several groups that share weights share them among each other, too",
        "use Auto or FSDP2, or tensorParallel for all processes",
    ),
    Rule(
        lambda spec: spec.distribution.tensor_parallel > 1 and spec.training.optimizer != "AdamW",
        "spec.training.optimizer",
        "only AdamW is known to update weights that processes share",
        "use AdamW",
    ),
    Rule(
        lambda spec: spec.distribution.tensor_parallel > 1 and spec.distribution.offload != "None",
        "spec.distribution.offload",
        "only ZeRO moves to the host's memory, and it cannot split weights that are shared already",
        "use offload None",
    ),
    Rule(
        lambda spec: spec.distribution.tensor_parallel > 1 and spec.validation is not None,
        "spec.validation",
        "evaluations are not known to come out the same where processes share weights",
        "leave it out, or use strategy FSDP2 without tensorParallel",
    ),
    Rule(
        lambda spec: spec.distribution.sequence_parallel > 1 and spec.training.packing == "Always",
        "spec.training.packing",
        "where a row is shared along its length its tokens look at all before them, at other rows packed with it, too",
        "use Auto or Never",
    ),
    Rule(
        lambda spec: (
            spec.distribution.sequence_parallel > 1 and spec.tuner.peft is not None and spec.tuner.peft.type in PROMPTS
        ),
        "spec.tuner.peft.type",
        "prompts would stand before each part of a row that is shared along its length",
        "use another type",
    ),
    Rule(
        lambda spec: spec.training.optimizer in PROJECTING and spec.tuner.type != "Full",
        "spec.training.optimizer",
        "GaLore and APOLLO project the gradients of whole weights, and adapters are small as they are",
        "use tuner Full, or AdamW",
    ),
    Rule(
        lambda spec: spec.tuner.lora_plus_ratio is not None and spec.training.optimizer in WHOLE,
        "spec.tuner.loraPlusRatio",
        "it makes groups of weights for AdamW",
        "use optimizer AdamW, AdamW8bit or PagedAdamW8bit",
    ),
    Rule(
        lambda spec: (
            spec.tuner.peft is not None
            and spec.tuner.peft.type in PROMPTS
            and spec.method.type not in {"PreTraining", "SFT"}
        ),
        "spec.tuner.peft.type",
        "prompts put tokens before the row, which only PreTraining and SFT are known to bear",
        "use another type",
    ),
    Rule(
        lambda spec: spec.training.truncation == "Split" and spec.method.type not in {"PreTraining", "SFT"},
        "spec.training.truncation",
        "only rows of PreTraining and SFT can be learned in parts",
        "use Right, Left, Drop or Error",
    ),
    Rule(
        lambda spec: spec.training.truncation == "Left" and spec.method.type in {"GRPO", "PPO", "GKD", "Reranker"},
        "spec.training.truncation",
        "prompts that are answered, and pairs of a query and a document, are not cut at their beginning",
        "use Right, Drop or Error",
    ),
    Rule(
        lambda spec: spec.training.tokenization == "Lazy" and spec.method.type not in LAZY,
        "spec.training.tokenization",
        f"only rows of {', '.join(LAZY)} become tokens one by one",
        "use Cached",
    ),
    Rule(
        lambda spec: lazy(spec) and spec.training.packing == "Always",
        "spec.training.packing",
        "which rows fit into one sequence is known once all are tokens, which Lazy does without",
        "use Auto or Never, or tokenization Cached",
    ),
    Rule(
        lambda spec: lazy(spec) and spec.training.truncation == "Split",
        "spec.training.truncation",
        "into how many parts each row is split is known once all are tokens, which Lazy does without",
        "use Right, Left, Drop or Error, or tokenization Cached",
    ),
    Rule(
        lambda spec: streamed(spec) and spec.method.type not in {"PreTraining", "SFT"},
        "spec.training.streaming",
        "only rows of PreTraining and SFT are learned from without a look at all of them",
        "use Disabled",
    ),
    Rule(
        lambda spec: streamed(spec) and spec.training.max_steps is None,
        "spec.training.maxSteps",
        "it is not set, and how many steps an epoch has is not known of rows that are streamed",
        "set it, or use streaming Disabled",
    ),
    Rule(
        lambda spec: streamed(spec) and any(one.sample for one in spec.datasets),
        "spec.datasets.sample",
        "it is drawn from all rows, which are not known where they are streamed",
        "leave it out, choose files by datasets.files, or use streaming Disabled",
    ),
    Rule(
        lambda spec: streamed(spec) and spec.validation is not None and spec.validation.split is not None,
        "spec.validation.split",
        "it is drawn from all rows, which are not known where they are streamed",
        "use validation.datasets, or streaming Disabled",
    ),
    Rule(
        lambda spec: streamed(spec) and any(locate(one.uri).fetch for one in spec.datasets),
        "spec.datasets.uri",
        "rows are streamed from what is mounted, and this would be fetched whole before, with the credentials that the "
        "training's own container never sees",
        "copy the files onto a claim and name them as pvc://claim/path (a claim may be backed by the object store), or "
        "use streaming Disabled",
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
        lambda spec: spec.training.micro_batch_size < min_rows(spec),
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
    Rule(
        lambda spec: spec.method.type in UNMEASURED and asks(spec.validation),
        "spec.validation",
        "GRPO, PPO and GKD learn from answers of their own, and are not evaluated: their metrics are in every log line",
        "leave out everySteps, metric, direction and earlyStopping",
    ),
    Rule(
        lambda spec: (
            spec.method.type not in UNMEASURED
            and spec.validation is not None
            and spec.validation.metric not in metrics_of(spec.method)
        ),
        "spec.validation.metric",
        "it is not measured by this method",
        lambda spec: f"use one of {', '.join(metrics_of(spec.method))}",
    ),
)


def refuse(spec: FineTuneJobSpec, modality: Modality = "Text", base: str = FULL_PRECISION) -> None:
    """Raise PlanError for a refused combination, or for the first rule that the spec breaks."""
    found = verdict(cell_of(spec, modality, base))
    if isinstance(found, Refused):
        raise PlanError(str(found))
    for rule in RULES:
        if rule.when(spec):
            instead = rule.instead if isinstance(rule.instead, str) else rule.instead(spec)
            raise PlanError(f"{rule.field}: {rule.why}: {instead}")
