"""How a FineTuneJob optimises, what it keeps of the way, and when it counts as stuck."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from tunesmith.api.base import ClaimUri, Model, NameRef, list_map, rule, rules

Optimizer = Literal["AdamW", "AdamW8bit", "PagedAdamW8bit", "Adafactor", "GaLore", "APOLLO"]
Truncation = Literal["Right", "Left", "Drop", "Split", "Error"]
TrackerType = Literal["TensorBoard", "WandB", "SwanLab", "MLflow"]
LearningRate = Annotated[float, Field(gt=0, le=10)]


class LearningRates(Model):
    """Peak learning rates of a multi-modal model's parts. They rise and fall as learningRate does."""

    towers: LearningRate | None = None
    """Of the vision and audio towers, where spec.tuner.freeze lets them learn. Default: learningRate."""
    aligner: LearningRate | None = None
    """Of the aligner, where spec.tuner.freeze lets it learn. Default: learningRate."""


class Tracker(Model):
    """An experiment tracker that rank 0 reports to, beside logging.jsonl. Where WandB or SwanLab have no secretRef, or
    MLflow no url, runs are written to `trackers` in the run's folder, to be looked at or synchronised from there.
    """

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.type != 'TensorBoard' || [has(self.project), has(self.url), has(self.secretRef)].all(x, !x)",
                "TensorBoard's files go to the run's folder: project, url and secretRef are for the other trackers",
            ),
            rule(
                "!(self.type in ['WandB', 'SwanLab']) || !has(self.url) || has(self.secretRef)",
                "WandB and SwanLab need a secretRef with an apiKey to report to a url",
            ),
            rule(
                "self.type != 'MLflow' || !has(self.secretRef) || has(self.url)",
                "MLflow needs the url of the server that secretRef is for",
            ),
        )
    )
    type: TrackerType
    """Which tracker."""
    project: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._-]+$")] | None = None
    """Project (in MLflow: experiment) of the run. Default: tunesmith."""
    url: Annotated[str, Field(max_length=1024, pattern=r"^https?://[^\s@]+$")] | None = None
    """Address of the server. Default for WandB and SwanLab: the public one."""
    secret_ref: NameRef | None = None
    """The Secret with the credentials, in the same namespace. Keys: `apiKey` for WandB and SwanLab; `token`, or
    `username` and `password`, for MLflow."""


class Training(Model):
    """Optimisation. Batch sizes are global, so that results do not depend on the number of nodes."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "self.globalBatchSize % self.microBatchSize == 0",
                "globalBatchSize must be a multiple of microBatchSize",
            ),
        )
    )
    epochs: Annotated[float, Field(gt=0, le=10000)] = 1
    """Passes over the data. Ignored where maxSteps is set."""
    max_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Number of optimizer steps. Default: by epochs."""
    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    """Peak learning rate. Default: 1e-4 for adapters, 1e-5 for Full."""
    optimizer: Optimizer = "AdamW"
    """AdamW; its state in 8 bit, also paged to the host's memory (AdamW8bit, PagedAdamW8bit: arXiv 2110.02861);
    Adafactor (arXiv 1804.04235); or AdamW of gradients projected to rank 128, for tuner Full (GaLore: arXiv
    2403.03507, APOLLO: arXiv 2412.05270)."""
    learning_rates: LearningRates = LearningRates()
    """Other rates for parts of a multi-modal model."""
    global_batch_size: Annotated[int, Field(ge=1, le=1_048_576)] = 16
    """Rows of one optimizer step, over all processes. Gradient accumulation is derived from it."""
    micro_batch_size: Annotated[int, Field(ge=1, le=4096)] = 1
    """Rows that one process holds at a time."""
    max_length: Annotated[int, Field(ge=8, le=10_000_000)] = 2048
    """Tokens of one row."""
    truncation: Truncation = "Right"
    """What becomes of longer rows. Right: they are cut at the end. Left: at the beginning; of a pair, the prompt's.
    Drop: they are left out. Split: they become several rows, for PreTraining and SFT. Error: the job ends. Rows with
    media are left out in any case, and so are GRPO's, PPO's and GKD's prompts without room for an answer."""
    data_cache: Literal["Store", "Local"] = "Store"
    """Where rows are kept once they are read. Store: under `cache` of the artefacts' store, for all jobs and nodes.
    Local: in each pod, for its processes and no longer."""
    tokenization: Literal["Cached", "Lazy"] = "Cached"
    """When rows become tokens. Cached: all of them before the first step; the tokens are kept with the rows. Lazy: each
    when it is drawn, so that the first step comes sooner; for PreTraining, SFT, DPO, KTO, CPO, SimPO and ORPO, without
    packing and truncation Split. Where a row that is drawn has nothing to learn, the next one is taken."""
    streaming: Literal["Enabled", "Disabled"] = "Disabled"
    """Enabled: rows are read, shuffled within a window and made into tokens as they are learned from. So datasets may
    be of any size, and nothing of them is kept. For PreTraining and SFT, with maxSteps, from pvc://, configmap:// and
    file://. Validation datasets are not streamed."""
    shuffle_buffer_size: Annotated[int, Field(ge=1, le=10_000_000)] = 1000
    """Where rows are streamed: rows of the window within which each process shuffles, and which it holds in memory. The
    order of files is shuffled in any case."""
    stopping_strategy: Literal["FirstExhausted", "AllExhausted"] = "FirstExhausted"
    """When mixing by weights ends. FirstExhausted: with the last row of the first dataset that ends. AllExhausted: when
    every row was drawn once at least; shorter datasets repeat."""
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
    report_to: Annotated[list[Tracker], Field(max_length=4, json_schema_extra=list_map("type"))] = []
    """Experiment trackers that get the metrics, too: TensorBoard, Weights & Biases, SwanLab, MLflow."""


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


class Stall(Model):
    """What counts as a standstill. It is said in the condition Stalled."""

    step_times: Annotated[float, Field(ge=2, le=100_000)] = 20
    """No step for so many times the usual time of a step…"""
    min_seconds: Annotated[int, Field(ge=1, le=604_800)] = 300
    """…and for at least so long."""
    action: Literal["None", "Restart"] = "None"
    """Restart: end the attempt, which counts as a failure, and go on from the newest checkpoint."""
