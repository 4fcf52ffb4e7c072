"""FineTuneJob: one training run, method x tuner x distribution x data, on N nodes."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from tunesmith.api.base import ATOMIC, Model, ModelSource, Resources, Time, rule, rules
from tunesmith.api.chat import ChatTemplate
from tunesmith.api.dataset import Dataset, Validation
from tunesmith.api.distribution import Distribution, Elastic, Memory
from tunesmith.api.job import JobSpec, JobStatus
from tunesmith.api.methods import Method
from tunesmith.api.output import Output
from tunesmith.api.training import Checkpoint, Stall, Training
from tunesmith.api.tuner import Tuner


class FineTuneJobSpec(JobSpec):
    """What to train, on what, how, and on how many nodes."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!has(self.elastic) || self.elastic.minNodes <= self.nodes",
                "elastic.minNodes must be at most nodes",
            )
        )
    )
    model: ModelSource
    """The model to start from."""
    datasets: Annotated[list[Dataset], Field(min_length=1, max_length=32, json_schema_extra=ATOMIC)]
    """What to learn from. Several are put one after the other and shuffled together."""
    validation: Validation | None = None
    """What to evaluate on. Default: nothing is kept aside."""
    chat_template: ChatTemplate = ChatTemplate()
    """How conversations become text."""
    method: Method
    """How to learn."""
    tuner: Tuner = Tuner()
    """Which weights to train."""
    training: Training = Training()
    """Optimisation."""
    nodes: Annotated[int, Field(ge=1, le=1024)] = 1
    """Number of pods that train together."""
    elastic: Elastic | None = None
    """Go on with fewer nodes where not all of them can be had. Default: all nodes are waited for."""
    processes_per_node: Annotated[int, Field(ge=1, le=64)] | None = None
    """Training processes of a pod. Default: one per GPU in resources.limits, else 1."""
    distribution: Distribution = Distribution()
    """How the model is spread over the processes."""
    memory: Memory = Memory()
    """The estimate of the memory of one device."""
    checkpoint: Checkpoint = Checkpoint()
    """When checkpoints are written, and where."""
    stall: Stall = Stall()
    """What counts as a standstill."""
    resources: Resources = Resources()
    """Of one pod."""
    output: Output = Output()
    """Where artefacts and checkpoints go."""

    def all_datasets(self) -> list[tuple[str, Dataset]]:
        """(field, dataset) of those to learn from and those to evaluate on."""
        own = self.validation.datasets if self.validation and self.validation.datasets else []
        return [
            *((f"spec.datasets[{i}]", one) for i, one in enumerate(self.datasets)),
            *((f"spec.validation.datasets[{i}]", one) for i, one in enumerate(own)),
        ]


class Progress(Model):
    """How far the training is. Written at most every 10 s."""

    step: int
    """Optimizer steps done."""
    total_steps: int
    """Optimizer steps in all."""
    percent: int
    """Part done, 0 to 100."""
    text: Annotated[str, Field(max_length=64)] | None = None
    """The same for people, for example 120/500 (24%)."""
    loss: float | None = None
    """Training loss of the newest log line."""
    learning_rate: float | None = None
    """Learning rate of the newest log line."""
    tokens_per_second: float | None = None
    """Tokens trained per second, over all processes."""
    mfu: float | None = None
    """Part of the GPUs' peak that the model's own arithmetic is (model FLOPs utilisation), by estimate, 0 to 1. Absent
    on CPU."""
    eta_seconds: int | None = None
    """Seconds to the end, by the speed so far."""
    eta: Annotated[str, Field(max_length=32)] | None = None
    """The same for people, for example 3m20s."""
    peak_memory_bytes: int | None = None
    """Largest memory of rank 0: of its GPU where it has one, else of the process."""
    step_seconds: float | None = None
    """Usual time of one step."""
    updated: Time | None = None
    """When the operator read this."""


class CheckpointStatus(Model):
    """The newest checkpoint."""

    step: int
    """Optimizer steps done in it."""
    uri: Annotated[str, Field(max_length=1024)]
    """Where it lies."""
    time: Time
    """When it was seen."""


class BestEvaluation(Model):
    """The best evaluation so far, by spec.validation.metric."""

    step: int
    """Optimizer steps done before it."""
    metric: Annotated[str, Field(max_length=128)]
    """What it is the best by."""
    value: float
    """Of that metric."""


class MemoryStatus(Model):
    """The estimate of the memory of one device, in bytes."""

    strategy: Annotated[str, Field(max_length=63)]
    """The distribution that was chosen or asked for, for example ZeRO3."""
    weights_bytes: int
    """Weights of the base and of the adapters."""
    gradients_bytes: int
    """Gradients of the trained weights."""
    optimizer_bytes: int
    """AdamW's two moments, and float32 copies of the weights where the strategy keeps some."""
    activations_bytes: int
    """Activations of one micro-batch, logits included."""
    overhead_bytes: int
    """Libraries, communication buffers and fragmentation."""
    total_bytes: int
    """The sum."""
    available_bytes: int | None = None
    """Memory of one device; absent where it is not known."""
    summary: Annotated[str, Field(max_length=2048)]
    """The same for people, and what would fit where it does not."""


class FineTuneJobStatus(JobStatus):
    """What the operator and the trainer report."""

    memory: MemoryStatus | None = None
    """The estimate of the memory of one device."""
    checkpoint: CheckpointStatus | None = None
    """The newest checkpoint."""
    best: BestEvaluation | None = None
    """The best evaluation so far, where there is spec.validation."""
    progress: Progress | None = None
    """How far the training is."""


class FineTuneJob(Model):
    """One training run: a method, a tuner and data, on one or several nodes."""

    spec: FineTuneJobSpec
    """What is wanted."""
    status: FineTuneJobStatus = FineTuneJobStatus()
    """What was observed."""
