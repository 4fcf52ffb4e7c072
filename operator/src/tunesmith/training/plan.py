"""The plan: what the program of a job's pods reads; nothing else reaches it. Made by planning.py."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from tunesmith.api.base import Model
from tunesmith.api.chat import ChatTemplate
from tunesmith.api.dataset import Columns, EarlyStopping
from tunesmith.api.inferencejob import Generation
from tunesmith.api.mergejob import Combine
from tunesmith.api.methods import Method
from tunesmith.api.quantization import CalibrationAlgorithm, GgufType, QuantizationMethod
from tunesmith.api.training import Optimizer, TrackerType, Truncation
from tunesmith.api.tuner import Peft, TunerType
from tunesmith.training.location import locate


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

    subset: str | None = None
    split: str | None = None
    files: list[str] = []
    columns: Columns = Columns()
    sample: int | None = None
    weight: float | None = None
    strict: bool = True
    variables: dict[str, str] = {}


class ValidationPlan(Model):
    """Rows to evaluate on: datasets of their own, or a part of those to learn from."""

    datasets: list[DatasetPlan] = []
    split: float | None = None
    every_steps: int | None = None
    """None: at the end of each epoch."""
    metric: str = "loss"
    maximize: bool = False
    publish: Literal["Best", "Last"] = "Best"
    early_stopping: EarlyStopping | None = None


class ChatPlan(ChatTemplate):
    """How conversations become text."""


class MethodPlan(Method):
    """How to learn, with the options of its type explicit, and where the other models lie that it needs."""

    models: dict[str, Place] = {}
    """By field of the spec, for example spec.method.gkd.teacher."""

    @property
    def loss_on(self) -> Literal["Assistant", "LastAssistant", "All"]:
        """Which tokens of a conversation are learned."""
        return self.sft.loss_on if self.sft else ("All" if self.type == "PreTraining" else "Assistant")


class FreezePlan(Model):
    """Parts of a multi-modal model that are not trained."""

    towers: bool = True
    aligner: bool = True
    language_model: bool = False


class TunerPlan(Model):
    """Which weights to train."""

    type: TunerType
    rank: int = 0
    alpha: float = 0
    dropout: float = 0
    target_modules: list[str] = []
    """Empty, with no target_pattern: all linear layers but the output head."""
    target_pattern: str | None = None
    modules_to_save: list[str] = []
    bias: Literal["None", "All", "AdaptersOnly"] = "None"
    dora: bool = False
    rs_lora: bool = False
    lora_plus_ratio: float = 1.0
    initialization: Literal["Zero", "PiSSA"] = "Zero"
    quantization: Literal["NF4", "Int8"] | None = None
    freeze: FreezePlan = FreezePlan()
    peft: Peft | None = None
    last_layers: int | None = None
    trainable_pattern: str | None = None

    @property
    def partial(self) -> bool:
        """Whether type Full trains a part of the weights."""
        return self.last_layers is not None or self.trainable_pattern is not None


class RatesPlan(Model):
    """Learning rates of parts, where they are not the one of all."""

    towers: float | None = None
    aligner: float | None = None


class TrackerPlan(Model):
    """An experiment tracker."""

    type: TrackerType
    project: str = "tunesmith"
    url: str | None = None
    secret: str | None = None
    """Path of the folder with the credentials."""


class TrainingPlan(Model):
    """Optimisation."""

    epochs: float
    max_steps: int | None = None
    learning_rate: float
    optimizer: Optimizer = "AdamW"
    learning_rates: RatesPlan = RatesPlan()
    global_batch_size: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    max_length: int
    truncation: Truncation = "Right"
    data_cache: Literal["Store", "Local"] = "Store"
    tokenization: Literal["Cached", "Lazy"] = "Cached"
    streaming: Literal["Enabled", "Disabled"] = "Disabled"
    shuffle_buffer_size: int = 1000
    stopping_strategy: Literal["FirstExhausted", "AllExhausted"] = "FirstExhausted"
    packing: bool
    scheduler: Literal["Cosine", "Linear", "Constant"]
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    gradient_checkpointing: bool
    dtype: Literal["Auto", "BFloat16", "Float32"]
    seed: int
    logging_steps: int
    report_to: list[TrackerPlan] = []


class CheckpointPlan(Place):
    """Where checkpoints lie, the folder of this run, and when they are written: exactly one of the two is set."""

    every_steps: int | None = None
    every_minutes: float | None = None
    keep: int = 2


class DistributionPlan(Model):
    """How the model is spread over the processes."""

    strategy: Literal["DDP", "DeviceMap", "FSDP2", "ZeRO1", "ZeRO2", "ZeRO3"] = "DDP"
    offload: Literal["None", "Optimizer", "All"] = "None"
    sequence_parallel: int = 1
    tensor_parallel: int = 1
    devices: int = 1
    """GPUs of one process; over several its layers are laid out."""

    @property
    def sharing(self) -> int:
        """Processes that work on the same rows."""
        return self.sequence_parallel * self.tensor_parallel


class OutputPlan(Place):
    """The store, and the folder of this run in it (logs, curves)."""

    run: str
    """Path of the run's folder."""
    license: str | None = None


class JobPlan(Model):
    """What every plan has: of a job with one process on one pod."""

    kind: str
    job: Job
    model: Place
    output: OutputPlan

    @property
    def inputs(self) -> list[Place]:
        """All that is read."""
        return [self.model]

    @property
    def pods(self) -> int:
        """Pods that the job runs on together."""
        return 1

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return 1

    @property
    def rows_at_once(self) -> int | None:
        """Rows that one process holds at a time, where that can be made less."""
        return None


class TrainPlan(JobPlan):
    """All that the trainer needs to know of one attempt of a FineTuneJob."""

    kind: Literal["FineTuneJob"] = "FineTuneJob"
    attempt: int = 1
    """An attempt may not write a checkpoint any more once a later one has begun."""
    datasets: list[DatasetPlan]
    validation: ValidationPlan = ValidationPlan()
    chat_template: ChatPlan = ChatPlan()
    method: MethodPlan
    tuner: TunerPlan
    training: TrainingPlan
    nodes: int
    processes_per_node: int
    distribution: DistributionPlan = DistributionPlan()
    checkpoint: CheckpointPlan

    @property
    def inputs(self) -> list[Place]:
        return [self.model, *self.all_datasets, *self.method.models.values(), *map(place, self.method.files())]

    @property
    def pods(self) -> int:
        return self.nodes

    @property
    def rows_at_once(self) -> int:
        return self.training.micro_batch_size

    @property
    def all_datasets(self) -> list[DatasetPlan]:
        """Those to learn from and those to evaluate on, in the order of the spec's."""
        return [*self.datasets, *self.validation.datasets]

    @property
    def world_size(self) -> int:
        """Training processes in all."""
        return self.nodes * self.processes_per_node

    @property
    def data_parallel(self) -> int:
        """Processes, or groups of them, that learn from rows of their own."""
        return self.world_size // self.distribution.sharing


class MergeAdapterPlan(Place):
    """An adapter to merge."""

    weight: float = 1.0
    step: int = 1


class CalibrationPlan(Model):
    """Rows that say how to round."""

    algorithm: CalibrationAlgorithm
    dataset: DatasetPlan
    max_length: int


class QuantizationPlan(Model):
    """How to make a model smaller, and how far its logits may move."""

    method: QuantizationMethod
    group_size: int | None = None
    gguf_type: GgufType | None = None
    calibration: CalibrationPlan | None = None
    tolerance: float


class MergePlan(JobPlan):
    """All that the merging program needs to know of a MergeJob."""

    kind: Literal["MergeJob"] = "MergeJob"
    adapters: list[MergeAdapterPlan]
    combine: Combine = Combine()
    dtype: Literal["Auto", "BFloat16", "Float16", "Float32"]
    tolerance: float
    quantization: QuantizationPlan | None = None

    @property
    def inputs(self) -> list[Place]:
        return [self.model, *self.adapters, *self.all_datasets]

    @property
    def all_datasets(self) -> list[DatasetPlan]:
        """Those that are read, in the order of the spec's."""
        calibration = self.quantization.calibration if self.quantization else None
        return [calibration.dataset] if calibration else []


class InferencePlan(JobPlan):
    """All that the asking program needs to know of one attempt of an InferenceJob."""

    kind: Literal["InferenceJob"] = "InferenceJob"
    attempt: int = 1
    """What an earlier attempt answered is taken over; each writes to files of its own."""
    adapter: Place | None = None
    datasets: list[DatasetPlan]
    max_rows: int | None = None
    batch_size: int
    generation: Generation

    @property
    def inputs(self) -> list[Place]:
        return [self.model, *([self.adapter] if self.adapter else []), *self.datasets]

    @property
    def all_datasets(self) -> list[DatasetPlan]:
        """Those that are read, in the order of the spec's."""
        return self.datasets

    @property
    def rows_at_once(self) -> int:
        return self.batch_size


AnyPlan = TrainPlan | MergePlan | InferencePlan


def digest(plan: AnyPlan) -> str:
    """`sha256:` of the plan's canonical JSON."""
    return "sha256:" + hashlib.sha256(json.dumps(plan.body(), sort_keys=True).encode()).hexdigest()


def place(uri: str) -> Place:
    """`uri` and its path in the container."""
    return Place(uri=uri, path=locate(uri).path)
