"""spec -> plan: every default made explicit. The plan is what the trainer reads; nothing else reaches it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Literal

from tunesmith.api.base import Model, Source
from tunesmith.api.finetunejob import Columns, FineTuneJobSpec
from tunesmith.api.mergejob import MergeJobSpec
from tunesmith.training.location import join, locate

GPU_RESOURCES = ("nvidia.com/gpu", "amd.com/gpu")


class PlanError(ValueError):
    """The spec cannot be carried out. The message names the field, what was found, and what to do."""


class Job(Model):
    """Whose plan this is."""

    namespace: str
    name: str
    uid: str


class Place(Model):
    """An address and where it is found in the container."""

    uri: str
    path: str


class DatasetPlan(Place):
    """One dataset."""

    columns: Columns = Columns()
    sample: int | None = None
    variables: dict[str, str] = {}


class MethodPlan(Model):
    """How to learn."""

    type: Literal["SFT", "PreTraining"]
    loss_on: Literal["Assistant", "LastAssistant", "All"] = "All"


class TunerPlan(Model):
    """Which weights to train."""

    type: Literal["LoRA", "QLoRA", "Full"]
    rank: int = 0
    alpha: float = 0
    dropout: float = 0
    target_modules: list[str] = []
    """Empty: all linear layers but the output head."""
    quantization: Literal["NF4", "Int8"] | None = None


class TrainingPlan(Model):
    """Optimisation."""

    epochs: float
    max_steps: int | None = None
    learning_rate: float
    global_batch_size: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    max_length: int
    packing: bool
    scheduler: Literal["Cosine", "Linear", "Constant"]
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    gradient_checkpointing: bool
    dtype: Literal["Auto", "BFloat16", "Float32"]
    seed: int
    logging_steps: int
    checkpoint_steps: int


class OutputPlan(Place):
    """The store, and the folder of this run in it (checkpoints, logs, curves)."""

    run: str
    """Path of the run's folder."""


class TrainPlan(Model):
    """All that the trainer needs to know of a FineTuneJob."""

    kind: Literal["FineTuneJob"] = "FineTuneJob"
    job: Job
    model: Place
    datasets: list[DatasetPlan]
    method: MethodPlan
    tuner: TunerPlan
    training: TrainingPlan
    nodes: int
    processes_per_node: int
    output: OutputPlan


class MergePlan(Model):
    """All that the merging program needs to know of a MergeJob."""

    kind: Literal["MergeJob"] = "MergeJob"
    job: Job
    model: Place
    adapters: list[Place]
    dtype: Literal["Auto", "BFloat16", "Float16", "Float32"]
    tolerance: float
    output: OutputPlan


Resolved = Mapping[tuple[str, str], str]
"""(kind, name) of a finished resource -> address of its artefact."""


def digest(plan: TrainPlan | MergePlan) -> str:
    """`sha256:` of the plan's canonical JSON."""
    return "sha256:" + hashlib.sha256(json.dumps(plan.body(), sort_keys=True).encode()).hexdigest()


def address(source: Source, resolved: Resolved) -> str:
    """The address of a source whose reference, if it is one, is resolved."""
    return resolved[source.reference] if source.reference else (source.uri or "")


def place(uri: str) -> Place:
    """`uri` and its path in the container."""
    return Place(uri=uri, path=locate(uri).path)


def processes_per_node(spec: FineTuneJobSpec) -> int:
    """Training processes of a pod: as asked, else one per GPU, else one."""
    if spec.processes_per_node:
        return spec.processes_per_node
    limits = spec.resources.limits or {}
    return next((int(limits[name]) for name in GPU_RESOURCES if name in limits), 1)


def output(job: Job, store: str) -> OutputPlan:
    """The store and the run's folder, which carries the uid: a job made again under its name starts anew."""
    run = locate(join(store, "jobs", job.namespace, f"{job.name}-{job.uid[:8]}")).path
    return OutputPlan(uri=store, path=locate(store).path, run=run)


def train_plan(job: Job, spec: FineTuneJobSpec, resolved: Resolved, default_store: str) -> TrainPlan:
    """Resolve a FineTuneJob's spec. Raises PlanError."""
    tuner, training = spec.tuner, spec.training
    processes = processes_per_node(spec)
    world = spec.nodes * processes
    per_step = world * training.micro_batch_size
    if training.global_batch_size % per_step:
        below = max(1, training.global_batch_size // per_step)
        raise PlanError(
            f"spec.training.globalBatchSize: {training.global_batch_size} rows cannot be divided among "
            f"{spec.nodes} node(s) x {processes} process(es) x microBatchSize {training.micro_batch_size}: "
            f"use {per_step * below} or {per_step * (below + 1)}"
        )
    adapters = tuner.type != "Full"
    rank = tuner.rank or 8
    method = spec.method
    return TrainPlan(
        job=job,
        model=place(address(spec.model, resolved)),
        datasets=[
            DatasetPlan(
                **place(d.uri).model_dump(),
                columns=d.columns or Columns(),
                sample=d.sample,
                variables=d.variables or {},
            )
            for d in spec.datasets
        ],
        method=MethodPlan(
            type=method.type,
            loss_on="All" if method.type == "PreTraining" else (method.sft.loss_on if method.sft else "Assistant"),
        ),
        tuner=TunerPlan(
            type=tuner.type,
            rank=rank if adapters else 0,
            alpha=(tuner.alpha or 4.0 * rank) if adapters else 0,
            dropout=(0.05 if tuner.dropout is None else tuner.dropout) if adapters else 0,
            target_modules=tuner.target_modules or [],
            quantization=(tuner.quantization or "NF4") if tuner.type == "QLoRA" else None,
        ),
        training=TrainingPlan(
            **training.model_dump(exclude={"packing", "gradient_checkpointing", "learning_rate"}),
            learning_rate=training.learning_rate or (1e-4 if adapters else 1e-5),
            gradient_accumulation_steps=training.global_batch_size // per_step,
            packing=training.packing == "Always" or (training.packing == "Auto" and method.type == "PreTraining"),
            gradient_checkpointing=training.gradient_checkpointing == "Enabled",
        ),
        nodes=spec.nodes,
        processes_per_node=processes,
        output=output(job, spec.output.uri or default_store),
    )


def merge_plan(job: Job, spec: MergeJobSpec, resolved: Resolved, default_store: str) -> MergePlan:
    """Resolve a MergeJob's spec."""
    return MergePlan(
        job=job,
        model=place(address(spec.model, resolved)),
        adapters=[place(address(adapter, resolved)) for adapter in spec.adapters],
        dtype=spec.dtype,
        tolerance=spec.check.tolerance,
        output=output(job, spec.output.uri or default_store),
    )
