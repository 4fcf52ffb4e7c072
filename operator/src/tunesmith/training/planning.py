"""spec -> plan: every default made explicit."""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import get_args

from tunesmith.api.base import Source
from tunesmith.api.dataset import Columns, Rows, Validation
from tunesmith.api.finetunejob import FineTuneJobSpec
from tunesmith.api.inferencejob import InferenceJobSpec
from tunesmith.api.mergejob import MergeJobSpec
from tunesmith.api.methods import Method, attribute
from tunesmith.api.quantization import Calibration, GgufType, Quantization
from tunesmith.api.training import Tracker
from tunesmith.api.tuner import Tuner
from tunesmith.training.location import SECRETS, join, locate
from tunesmith.training.matrix import PlanError, devices, groups, lazy, processes_per_node, refuse, sharing
from tunesmith.training.plan import (
    CalibrationPlan,
    ChatPlan,
    CheckpointPlan,
    DatasetPlan,
    DistributionPlan,
    FreezePlan,
    InferencePlan,
    Job,
    MergeAdapterPlan,
    MergePlan,
    MethodPlan,
    OutputPlan,
    QuantizationPlan,
    TrackerPlan,
    TrainingPlan,
    TrainPlan,
    TunerPlan,
    ValidationPlan,
    place,
)

RANK = 8
"""Of adapters, where the spec names none."""
GROUP_SIZE = 128
"""Of W4A16, where the spec names none."""
GGUF_TYPE: GgufType = "Q8_0"
"""Of GGUF, where the spec names none."""
TOLERANCES = {"FP8": 0.2, "W8A8": 0.2, "W4A16": 0.3, "NF4": 0.3}
TOLERANCES |= {"F16": 0.02, "BF16": 0.02, "Q8_0": 0.1, "Q5_1": 0.2, "Q5_0": 0.2, "Q4_1": 0.3, "Q4_0": 0.3}
"""Of a quantised model's logits, where the spec names none."""
Resolved = Mapping[tuple[str, str], str]
"""(kind, name) of a finished resource -> address of its artefact."""


def address(source: Source, resolved: Resolved) -> str:
    """The address of a source whose reference, if it is one, is resolved."""
    return resolved[source.reference] if source.reference else (source.uri or "")


def run_folder(job: Job, store: str) -> str:
    """Address of a run's folder, which carries the uid: a job made again under its name starts anew."""
    return join(store, "jobs", job.namespace, f"{job.name}-{job.uid[:8]}")


def output(job: Job, store: str, license: str | None = None) -> OutputPlan:
    """The store and the run's folder in it, and what the artefact's card says."""
    run = locate(run_folder(job, store)).path
    return OutputPlan(**place(store).model_dump(), run=run, license=license)


def accumulation(field: str, batch: int, nodes: int, processes: int, micro: int, sharing: int = 1) -> int:
    """Micro-batches of one optimizer step, where `sharing` processes work on the same rows. Raises PlanError where the
    global batch cannot be divided.
    """
    if nodes * processes % sharing:
        raise PlanError(f"{field}: {sharing} processes share their rows, which do not divide {nodes * processes}")
    per_step = nodes * processes * micro // sharing
    if batch % per_step:
        below = max(1, batch // per_step)
        shared = f" / {sharing} that share rows" if sharing > 1 else ""
        raise PlanError(
            f"{field}: {batch} rows cannot be divided among {nodes} node(s) x {processes} process(es){shared} x "
            f"microBatchSize {micro}: use {per_step * below} or {per_step * (below + 1)}"
        )
    return batch // per_step


def train_plan(job: Job, spec: FineTuneJobSpec, resolved: Resolved, default_store: str) -> TrainPlan:
    """Resolve a FineTuneJob's spec, for its first attempt. Strategy Auto is DDP until an estimate says otherwise.
    Raises PlanError.
    """
    tuner, training, method, kept = spec.tuner, spec.training, spec.method, spec.checkpoint
    processes = processes_per_node(spec)
    store = spec.output.uri or default_store
    refuse(spec)
    asked = spec.distribution
    # Auto: where groups share weights, FSDP2 is what there is for several of them.
    first = "FSDP2" if asked.tensor_parallel > 1 and groups(spec) > 1 else "DDP"
    return TrainPlan(
        job=job,
        model=place(address(spec.model, resolved)),
        datasets=[dataset_plan(one) for one in spec.datasets],
        validation=validation_plan(spec.validation) if spec.validation else ValidationPlan(),
        chat_template=ChatPlan(**spec.chat_template.model_dump()),
        method=method_plan(method, resolved),
        tuner=tuner_plan(tuner),
        training=TrainingPlan(
            **training.model_dump(exclude={"packing", "gradient_checkpointing", "learning_rate", "report_to"}),
            learning_rate=training.learning_rate or (1e-5 if tuner.type == "Full" else 1e-4),
            gradient_accumulation_steps=accumulation(
                "spec.training.globalBatchSize",
                training.global_batch_size,
                spec.nodes,
                processes,
                training.micro_batch_size,
                sharing(spec),
            ),
            packing=packed(spec),
            gradient_checkpointing=training.gradient_checkpointing == "Enabled",
            report_to=[tracker_plan(one) for one in training.report_to],
        ),
        nodes=spec.nodes,
        processes_per_node=processes,
        distribution=DistributionPlan(
            strategy=first if asked.strategy == "Auto" else asked.strategy,
            devices=devices(spec),
            **asked.model_dump(exclude={"strategy"}),
        ),
        checkpoint=CheckpointPlan(
            **place(run_folder(job, kept.storage or store)).model_dump(),
            every_steps=None if kept.every_minutes else (kept.every_steps or 500),
            every_minutes=kept.every_minutes,
            keep=kept.keep,
        ),
        output=output(job, store, spec.output.license),
    )


def packed(spec: FineTuneJobSpec) -> bool:
    """Whether several rows come into one sequence."""
    training = spec.training
    if training.packing != "Auto":
        return training.packing == "Always"
    return spec.method.type == "PreTraining" and spec.distribution.sequence_parallel == 1 and not lazy(spec)


def tracker_plan(tracker: Tracker) -> TrackerPlan:
    """The plan of a tracker: its credentials by their path."""
    return TrackerPlan(
        type=tracker.type,
        url=tracker.url,
        secret=f"{SECRETS}/{tracker.secret_ref.name}" if tracker.secret_ref else None,
        **({"project": tracker.project} if tracker.project else {}),
    )


def validation_plan(validation: Validation) -> ValidationPlan:
    """What to evaluate on, when, and what follows of it."""
    lower = validation.metric == "loss" or "error" in validation.metric
    return ValidationPlan(
        datasets=[dataset_plan(one) for one in validation.datasets or []],
        maximize=validation.direction == "Maximize" if validation.direction else not lower,
        **validation.model_dump(include={"split", "every_steps", "metric", "publish", "early_stopping"}),
    )


def dataset_plan(dataset: Rows) -> DatasetPlan:
    """A dataset and where its files are."""
    return DatasetPlan(
        **place(dataset.uri).model_dump(),
        columns=dataset.columns or Columns(),
        files=dataset.files or [],
        variables=dataset.variables or {},
        **dataset.model_dump(include={"subset", "split", "sample", "weight", "strict"}),
    )


def tuner_plan(tuner: Tuner) -> TunerPlan:
    """The tuner with all defaults of its type."""
    lora = tuner.type in ("LoRA", "QLoRA")
    rank = tuner.rank or RANK
    return TunerPlan(
        type=tuner.type,
        rank=rank if lora else 0,
        alpha=(tuner.alpha or 4.0 * rank) if lora else 0,
        dropout=(0.05 if tuner.dropout is None else tuner.dropout) if lora else 0,
        target_modules=tuner.target_modules or [],
        target_pattern=tuner.target_pattern,
        modules_to_save=tuner.modules_to_save or [],
        bias=tuner.bias or "None",
        dora=tuner.dora == "Enabled",
        rs_lora=tuner.rs_lora == "Enabled",
        lora_plus_ratio=tuner.lora_plus_ratio or 1.0,
        initialization=tuner.initialization or "Zero",
        quantization=(tuner.quantization or "NF4") if tuner.type == "QLoRA" else None,
        freeze=FreezePlan(**tuner.freeze.model_dump()),
        peft=tuner.peft,
        last_layers=tuner.last_layers,
        trainable_pattern=tuner.trainable_pattern,
    )


def method_plan(method: Method, resolved: Resolved) -> MethodPlan:
    """The method with all defaults of its type."""
    name = attribute(method.type)
    kind = next(t for t in get_args(Method.model_fields[name].annotation) if t is not NoneType)
    return MethodPlan.model_validate(
        {
            **method.model_dump(),
            name: (method.options or kind()).model_dump(),
            "models": {field: place(address(source, resolved)) for field, source in method.sources()},
        }
    )


def for_attempt(plan: TrainPlan, attempt: int, nodes: int, micro_batch_size: int) -> TrainPlan:
    """The plan of a later attempt: other nodes or micro-batches, the same global batch. Raises PlanError."""
    batch = plan.training.global_batch_size
    sharing = plan.distribution.sharing
    steps = accumulation("nodes", batch, nodes, plan.processes_per_node, micro_batch_size, sharing)
    training = plan.training.model_copy(
        update={"micro_batch_size": micro_batch_size, "gradient_accumulation_steps": steps}
    )
    return plan.model_copy(update={"attempt": attempt, "nodes": nodes, "training": training})


def nodes_that_divide(plan: TrainPlan, most: int, least: int) -> int | None:
    """The largest number of nodes in [least, most] among which the global batch can be divided, if there is one."""
    training, sharing = plan.training, plan.distribution.sharing
    for nodes in range(most, least - 1, -1):
        groups, rest = divmod(nodes * plan.processes_per_node, sharing)
        if not rest and training.global_batch_size % (groups * training.micro_batch_size) == 0:
            return nodes
    return None


def merge_plan(job: Job, spec: MergeJobSpec, resolved: Resolved, default_store: str) -> MergePlan:
    """Resolve a MergeJob's spec."""
    return MergePlan(
        job=job,
        model=place(address(spec.model, resolved)),
        adapters=[
            MergeAdapterPlan(**place(address(adapter, resolved)).model_dump(), weight=adapter.weight, step=adapter.step)
            for adapter in spec.adapters
        ],
        combine=spec.combine,
        dtype=spec.dtype,
        tolerance=spec.check.tolerance,
        quantization=quantization_plan(spec.quantization) if spec.quantization else None,
        output=output(job, spec.output.uri or default_store, spec.output.license),
    )


def quantization_plan(spec: Quantization) -> QuantizationPlan:
    """With the defaults of its method."""
    gguf_type = (spec.gguf_type or GGUF_TYPE) if spec.method == "GGUF" else None
    return QuantizationPlan(
        method=spec.method,
        group_size=(spec.group_size or GROUP_SIZE) if spec.method == "W4A16" else None,
        gguf_type=gguf_type,
        calibration=calibration_plan(spec.calibration) if spec.calibration else None,
        tolerance=spec.tolerance or TOLERANCES[gguf_type or spec.method],
    )


def calibration_plan(spec: Calibration) -> CalibrationPlan:
    """Where its rows are."""
    return CalibrationPlan(algorithm=spec.algorithm, dataset=dataset_plan(spec.dataset), max_length=spec.max_length)


def inference_plan(job: Job, spec: InferenceJobSpec, resolved: Resolved, default_store: str) -> InferencePlan:
    """Resolve an InferenceJob's spec, for its first attempt."""
    return InferencePlan(
        job=job,
        model=place(address(spec.model, resolved)),
        adapter=place(address(spec.adapter, resolved)) if spec.adapter else None,
        datasets=[dataset_plan(one) for one in spec.datasets],
        max_rows=spec.max_rows,
        batch_size=spec.batch_size,
        generation=spec.generation,
        output=output(job, spec.output.uri or default_store, spec.output.license),
    )
