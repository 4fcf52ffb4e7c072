"""A request to fine-tune becomes a FineTuneJob."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tunesmith.api.base import API_VERSION, MAX_NAME
from tunesmith.api.training import Training
from tunesmith.openai_api.catalog import Base
from tunesmith.openai_api.graders import Grader

Object = dict[str, Any]
MADE_LABEL = "tunesmith.io/openai-api"
"""Label of jobs that came this way: an adapterSelector with it serves whatever they make."""
REQUEST_ANNOTATION = "tunesmith.io/openai-request"
"""The request as JSON."""
CANCELLED_ANNOTATION = "tunesmith.io/openai-cancelled"
"""When the job was cancelled. It stays suspended."""
MAX_SEED = 2**31 - 1
DEFAULT_BETA = 0.1
RATES = {"Full": 1e-5}
ADAPTER_RATE = 1e-4
Auto = Literal["auto"]


class Part(BaseModel):
    """A part of a request: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class Hyperparameters(Part):
    """What all methods have. `auto` or absent: the model's entry of the table decides, else tunesmith's default."""

    n_epochs: Auto | Annotated[int, Field(ge=1, le=50)] | None = None
    batch_size: Auto | Annotated[int, Field(ge=1, le=65_536)] | None = None
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=1000)] | None = None


class DpoHyperparameters(Hyperparameters):
    """Of method dpo."""

    beta: Auto | Annotated[float, Field(gt=0, le=2)] | None = None


class ReinforcementHyperparameters(Hyperparameters):
    """Of method reinforcement. What has no counterpart here can only be left to its default."""

    compute_multiplier: Auto | None = None
    eval_interval: Auto | None = None
    eval_samples: Auto | None = None
    reasoning_effort: Literal["default"] | None = None


class Supervised(Part):
    """Method supervised."""

    hyperparameters: Hyperparameters | None = None


class Dpo(Part):
    """Method dpo."""

    hyperparameters: DpoHyperparameters | None = None


class Reinforcement(Part):
    """Method reinforcement."""

    grader: Grader
    hyperparameters: ReinforcementHyperparameters | None = None


class Method(Part):
    """How the model learns, with the options under the method's own name."""

    type: Literal["supervised", "dpo", "reinforcement"] = "supervised"
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: Reinforcement | None = None

    @model_validator(mode="after")
    def _only_its_own(self) -> Method:
        for name in ("supervised", "dpo", "reinforcement"):
            if name != self.type and getattr(self, name):
                raise ValueError(f"{name} is only for type {name}")
        if self.type == "reinforcement" and not self.reinforcement:
            raise ValueError("type reinforcement needs reinforcement.grader")
        return self

    @property
    def hyperparameters(self) -> Hyperparameters:
        """Of its type."""
        options: Supervised | Dpo | Reinforcement | None = getattr(self, self.type)
        return (options and options.hyperparameters) or Hyperparameters()


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
]


class CreateJob(Part):
    """POST /v1/fine_tuning/jobs."""

    model: Annotated[str, Field(max_length=256)]
    training_file: Annotated[str, Field(max_length=64)]
    validation_file: Annotated[str, Field(max_length=64)] | None = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    suffix: Annotated[str, Field(max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    metadata: Metadata | None = None
    integrations: Annotated[list[Object], Field(max_length=0)] | None = None

    @model_validator(mode="after")
    def _one_place(self) -> CreateJob:
        if self.method and self.hyperparameters:
            raise ValueError("hyperparameters go under method, not beside it")
        return self

    @property
    def chosen(self) -> Method:
        """The method, also where it is only implied."""
        if self.method:
            return self.method
        return Method(type="supervised", supervised=Supervised(hyperparameters=self.hyperparameters))


@dataclass(frozen=True)
class Inputs:
    """Addresses of what a job reads: rows to learn from, rows to evaluate on, and the file with the reward."""

    training: str
    validation: str | None = None
    reward: str | None = None


def job_name(suffix: str | None, random: str) -> str:
    """Name of the FineTuneJob, which is also the job's id and the name of the model that it makes."""
    begin = f"ftjob-{random}"
    word = re.sub(r"[^a-z0-9]+", "-", (suffix or "").lower()).strip("-")
    return f"{begin}-{word}"[:MAX_NAME].rstrip("-")


def job_body(request: CreateJob, base: Base, inputs: Inputs, name: str, seed: int) -> Object:
    """The FineTuneJob of a request. `seed`: where the request has none."""
    method = request.chosen
    seed = seed if request.seed is None else request.seed
    said = {**request.model_dump(mode="json", exclude_none=True), "seed": seed}
    spec = {
        **base.spec,
        "model": base.source,
        "datasets": [{"uri": inputs.training}],
        "method": METHODS[method.type](method, inputs),
        "training": {**training(base.spec, method.hyperparameters), "seed": seed},
    }
    if inputs.validation:
        spec["validation"] = {"datasets": [{"uri": inputs.validation}]}
    return {
        "apiVersion": API_VERSION,
        "kind": "FineTuneJob",
        "metadata": {
            "name": name,
            "labels": {MADE_LABEL: "true"},
            "annotations": {REQUEST_ANNOTATION: json.dumps(said, sort_keys=True)},
        },
        "spec": spec,
    }


def training(defaults: Object, wanted: Hyperparameters) -> Object:
    """spec.training: the table's, changed by what was asked for."""
    result: Object = dict(defaults.get("training", {}))
    if isinstance(wanted.n_epochs, int):
        result.pop("maxSteps", None)
        result["epochs"] = wanted.n_epochs
    if isinstance(wanted.batch_size, int):
        result["globalBatchSize"] = wanted.batch_size
        micro = result.get("microBatchSize", Training().micro_batch_size)
        result["microBatchSize"] = math.gcd(micro, wanted.batch_size)
    if isinstance(wanted.learning_rate_multiplier, float | int):
        tuner = defaults.get("tuner", {}).get("type", "LoRA")
        rate = result.get("learningRate") or RATES.get(tuner, ADAPTER_RATE)
        result["learningRate"] = rate * wanted.learning_rate_multiplier
    return result


def _sft(_: Method, __: Inputs) -> Object:
    return {"type": "SFT"}


def _dpo(method: Method, _: Inputs) -> Object:
    wanted = method.hyperparameters
    beta = wanted.beta if isinstance(wanted, DpoHyperparameters) and isinstance(wanted.beta, float) else DEFAULT_BETA
    return {"type": "DPO", "dpo": {"beta": beta}}


def _grpo(_: Method, inputs: Inputs) -> Object:
    return {"type": "GRPO", "grpo": {"rewards": [{"type": "Python", "python": {"uri": inputs.reward}}]}}


METHODS: dict[str, Callable[[Method, Inputs], Object]] = {"supervised": _sft, "dpo": _dpo, "reinforcement": _grpo}
