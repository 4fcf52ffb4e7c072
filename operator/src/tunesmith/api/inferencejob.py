"""InferenceJob: a model's answers to the rows of datasets, compared with those that the rows have."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tunesmith.api.base import ATOMIC, AdapterSource, Model, ModelSource, Resources, Time
from tunesmith.api.dataset import Rows
from tunesmith.api.job import JobSpec, JobStatus
from tunesmith.api.output import Output


class Generation(Model):
    """How answers are made. Models that do not answer (classifiers, reward models, embeddings, rerankers) have no use
    for it.
    """

    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    """Tokens of an answer at most."""
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Of the sampling. 0: always the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Tokens are drawn from the likeliest ones that together have this share."""
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    """Of what is drawn: the same seed and batchSize give the same answers, also after an interruption."""


class InferenceJobSpec(JobSpec):
    """Which model answers which rows, and how."""

    model: ModelSource
    """The model that is asked, or the base of the adapter."""
    adapter: AdapterSource | None = None
    """An adapter of the model. Of what a job made, method, chat template and system prompt are taken from the plan in
    its manifest."""
    datasets: Annotated[list[Rows], Field(min_length=1, max_length=32, json_schema_extra=ATOMIC)]
    """What is asked, one dataset after the other. Rows with an answer, a label or documents are compared with it;
    without, they are questions only."""
    max_rows: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """Only so many rows, the first ones of all. Default: all."""
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 8
    """Rows at once, after which what is answered is kept for a next attempt."""
    generation: Generation = Generation()
    """How answers are made."""
    resources: Resources = Resources()
    """Of the pod."""
    output: Output = Output()
    """Where the results go."""

    def all_datasets(self) -> list[tuple[str, Rows]]:
        """(field, dataset) of all."""
        return [(f"spec.datasets[{i}]", one) for i, one in enumerate(self.datasets)]


class RowsProgress(Model):
    """How many rows are answered. Written at most every 10 s."""

    rows: int
    """Rows that are answered, by all attempts."""
    total_rows: int
    """Rows in all."""
    percent: int
    """Part done, 0 to 100."""
    text: Annotated[str, Field(max_length=64)]
    """The same for people, for example 120/500 (24%)."""
    rows_per_second: float | None = None
    """By the speed of this attempt."""
    eta_seconds: int | None = None
    """Seconds to the end, by the speed so far."""
    eta: Annotated[str, Field(max_length=32)] | None = None
    """The same for people, for example 3m20s."""
    updated: Time
    """When the operator read this."""


class InferenceJobStatus(JobStatus):
    """What the operator and the asking pod report."""

    progress: RowsProgress | None = None
    """How many rows are answered."""
    metrics: Annotated[dict[str, float], Field(max_length=32)] | None = None
    """Means over the rows that say what is expected, for example accuracy and rougeL (docs/inference.md)."""


class InferenceJob(Model):
    """Asks a model the rows of datasets, and keeps its answers with their metrics. `results.jsonl` and `metrics.json`
    lie in the folder of status.artifact.
    """

    spec: InferenceJobSpec
    """What is wanted."""
    status: InferenceJobStatus = InferenceJobStatus()
    """What was observed."""
