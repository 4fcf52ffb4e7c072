"""FineTuneJob: one training run, method x tuner x distribution x data, on N nodes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from tunesmith.api.base import (
    ATOMIC,
    ClaimUri,
    Model,
    ModelSource,
    Output,
    Quantity,
    Resources,
    SecretRef,
    Time,
    Uri,
    rule,
    rules,
)
from tunesmith.api.job import JobSpec, JobStatus
from tunesmith.api.methods import Method

ColumnName = Annotated[str, Field(min_length=1, max_length=128)]


class Columns(Model):
    """Names of a dataset's columns, where they are not the usual ones."""

    messages: ColumnName | None = None
    """Column with the list of messages, each a role and a content."""
    query: ColumnName | None = None
    """Column with the user's turn."""
    response: ColumnName | None = None
    """Column with the answer."""
    system: ColumnName | None = None
    """Column with the system prompt."""
    text: ColumnName | None = None
    """Column with plain text, for pre-training."""


class Dataset(Model):
    """Rows to learn from: JSONL with `messages`, alpaca (`instruction`, `input`, `output`), `query` and
    `response`, or `text` rows. Which of them it is, is found out from the first row.
    """

    uri: Uri
    """Address of a file, or of a folder of files, as in spec.model.uri."""
    secret_ref: SecretRef | None = None
    """Credentials for `uri`."""
    columns: Columns | None = None
    """Names of columns, where they are not found by themselves."""
    sample: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """Use this many rows, drawn with training.seed. More than there are repeats rows. Default: all."""
    variables: Annotated[dict[str, Annotated[str, Field(max_length=1024)]], Field(max_length=32)] | None = None
    """Texts that replace `{{KEY}}` in every row."""


class Tuner(Model):
    """Which weights are trained."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.type != 'Full' || "
                "!(has(self.rank) || has(self.alpha) || has(self.dropout) || has(self.targetModules))",
                "rank, alpha, dropout and targetModules are only for types LoRA and QLoRA",
            ),
            rule("self.type == 'QLoRA' || !has(self.quantization)", "quantization is only for type QLoRA"),
        )
    )
    type: Literal["LoRA", "QLoRA", "Full"] = "LoRA"
    """LoRA (low-rank adapters, arXiv 2106.09685), QLoRA (the same over a quantised base, arXiv 2305.14314) or
    Full (all weights)."""
    rank: Annotated[int, Field(ge=1, le=512)] | None = None
    """Rank of the adapters. Default: 8."""
    alpha: Annotated[float, Field(gt=0, le=4096)] | None = None
    """Scaling numerator: updates are scaled by alpha / rank. Default: four times the rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Dropout before the adapters. Default: 0.05."""
    target_modules: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=253)]],
            Field(min_length=1, max_length=64, json_schema_extra=ATOMIC),
        ]
        | None
    ) = None
    """Names of the linear modules that get an adapter, for example `q_proj`. Default: all linear layers but the
    output head."""
    quantization: Literal["NF4", "Int8"] | None = None
    """How QLoRA holds the base: NF4 (4 bit) or Int8. Default: NF4."""


class Training(Model):
    """Optimisation. Batch sizes are global, so that results do not depend on the number of nodes."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.globalBatchSize % self.microBatchSize == 0",
                "globalBatchSize must be a multiple of microBatchSize",
            )
        )
    )
    epochs: Annotated[float, Field(gt=0, le=10000)] = 1
    """Passes over the data. Ignored where maxSteps is set."""
    max_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Number of optimizer steps. Default: by epochs."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    """Peak learning rate. Default: 1e-4 for LoRA and QLoRA, 1e-5 for Full."""
    global_batch_size: Annotated[int, Field(ge=1, le=1_048_576)] = 16
    """Rows of one optimizer step, over all processes. Gradient accumulation is derived from it."""
    micro_batch_size: Annotated[int, Field(ge=1, le=4096)] = 1
    """Rows that one process holds at a time."""
    max_length: Annotated[int, Field(ge=8, le=10_000_000)] = 2048
    """Tokens of one row; longer ones are cut at the end."""
    packing: Literal["Auto", "Always", "Never"] = "Auto"
    """Put several short rows into one sequence, with attention kept apart. Auto: for PreTraining."""
    scheduler: Literal["Cosine", "Linear", "Constant"] = "Cosine"
    """How the learning rate falls after warm-up."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Part of the steps in which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Decoupled weight decay of AdamW."""
    max_grad_norm: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Gradients are scaled down to this norm."""
    gradient_checkpointing: Literal["Enabled", "Disabled"] = "Enabled"
    """Recompute activations in the backward pass: less memory, about a quarter slower."""
    dtype: Literal["Auto", "BFloat16", "Float32"] = "Auto"
    """Compute type. Auto: bfloat16 where the accelerator has it, else float32."""
    seed: Annotated[int, Field(ge=0, le=2_147_483_647)] = 42
    """Seed of data order, sampling, initialisation and dropout."""
    logging_steps: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    """Optimizer steps between two lines of logging.jsonl."""


class Checkpoint(Model):
    """What a run can go on from. SIGTERM (a drain, a preemption, spec.suspend) makes one more."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "!(has(self.everySteps) && has(self.everyMinutes))",
                "at most one of everySteps and everyMinutes must be set",
            )
        )
    )
    every_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Optimizer steps between two checkpoints. Default where everyMinutes is not set either: 500."""
    every_minutes: Annotated[float, Field(gt=0, le=100_000)] | None = None
    """Minutes between two checkpoints."""
    keep: Annotated[int, Field(ge=1, le=1000)] = 2
    """Newest checkpoints that are kept."""
    storage: ClaimUri | None = None
    """Where they are written, `pvc://claim/path`. Default: the store of the artefacts."""


class Distribution(Model):
    """How the model is spread over the training processes."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.offload == 'None' || self.strategy in ['Auto', 'ZeRO2', 'ZeRO3']",
                "offload needs strategy Auto, ZeRO2 or ZeRO3",
            ),
            rule(
                "self.offload != 'All' || self.strategy in ['Auto', 'ZeRO3']",
                "offload All needs strategy Auto or ZeRO3",
            ),
        )
    )
    strategy: Literal["Auto", "DDP", "ZeRO1", "ZeRO2", "ZeRO3"] = "Auto"
    """DDP (every process holds everything) or DeepSpeed's ZeRO (arXiv 1910.02054): the optimizer's state (ZeRO1), also
    the gradients (ZeRO2), also the weights (ZeRO3) are shared out among the processes. Auto: the first of DDP, ZeRO2,
    ZeRO3, ZeRO3 with offload that fits the memory by its estimate."""
    offload: Literal["None", "Optimizer", "All"] = "None"
    """Keep the optimizer's state, or also the weights, in the host's memory."""


class Memory(Model):
    """The estimate of the memory of one device, made from the model's configuration before any GPU is held."""

    check: Literal["Refuse", "Warn", "Disabled"] = "Refuse"
    """What becomes of a job that does not fit: it is refused, or a condition says so, or no estimate is made."""
    per_device: Quantity | None = None
    """Memory of one device, for example 80Gi. Default: of the GPUs, by the label nvidia.com/gpu.memory of the nodes;
    on CPU, resources.limits.memory divided among the processes."""


class Elastic(Model):
    """Go on with fewer nodes where not all of them can be had. The global batch stays as it is. For strategy DDP:
    with ZeRO, fewer processes would have to hold more each.
    """

    min_nodes: Annotated[int, Field(ge=1, le=1024)]
    """Start with no fewer."""
    wait_seconds: Annotated[int, Field(ge=0, le=86_400)] = 300
    """How long all nodes are waited for, each time that the pods start."""


class Stall(Model):
    """What counts as a standstill. It is said in the condition Stalled."""

    step_times: Annotated[float, Field(ge=2, le=100_000)] = 20
    """No step for so many times the usual time of a step…"""
    min_seconds: Annotated[int, Field(ge=1, le=604_800)] = 300
    """…and for at least so long."""
    action: Literal["None", "Restart"] = "None"
    """Restart: end the attempt, which counts as a failure, and go on from the newest checkpoint."""


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
    progress: Progress | None = None
    """How far the training is."""


class FineTuneJob(Model):
    """One training run: a method, a tuner and data, on one or several nodes."""

    spec: FineTuneJobSpec
    """What is wanted."""
    status: FineTuneJobStatus = FineTuneJobStatus()
    """What was observed."""
