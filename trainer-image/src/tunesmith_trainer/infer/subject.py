"""What is inferred with: the artefact of a job, or a model's folder. All that matters is read from its files: the
method, the base, the template and its arguments from manifest.json; of a model without one, the task from config.json.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from tunesmith.api.methods import SFT, Classification, Embedding, MethodType
from tunesmith.training.plan import InferencePlan, MethodPlan, Place, TrainPlan

from tunesmith_trainer.errors import ModelError
from tunesmith_trainer.local.addresses import Here
from tunesmith_trainer.model import (
    WHOLE_TO_TRAIN,
    check_adapter_files,
    check_files,
    compute_dtype,
    config_of,
    is_packed,
    load_model,
    load_tokenizer,
    manifest_of,
)
from tunesmith_trainer.trained import Trained, plan_of, trained_as

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Task = Literal["Generate", "Classify", "Score", "Rerank", "Embed"]
TASKS: Mapping[MethodType, Task] = {
    "Classification": "Classify", "RewardModel": "Score", "Reranker": "Rerank", "Embedding": "Embed",
}  # fmt: skip
"""What a model is for that one of these methods trained; those of others answer."""
PROBLEMS: Mapping[str, Literal["SingleLabel", "MultiLabel", "Regression"]] = {
    "multi_label_classification": "MultiLabel", "regression": "Regression",
}  # fmt: skip
UNNAMED = {0: "LABEL_0", 1: "LABEL_1"}
MAX_LENGTH = 8192
"""Tokens at which texts are cut that a model without a plan judges."""


@dataclass(frozen=True)
class Subject:
    """A model or an adapter, by its files."""

    model: Place
    """Of an adapter its base."""
    adapter: Place | None
    trained: Trained
    """By its manifest, else by the model's files."""

    @property
    def made(self) -> Place:
        """What a training made of it."""
        return self.adapter or self.model

    @property
    def method(self) -> MethodPlan:
        """The method that made it."""
        return self.trained.method

    @property
    def task(self) -> Task:
        """What it is for."""
        return TASKS.get(self.method.type, "Generate")


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    max_new_tokens: int = 512
    temperature: float = 0.0
    """0: always the likeliest token."""
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Loaded:
    """A subject that is ready."""

    subject: Subject
    model: Any
    tokenizer: PreTrainedTokenizerFast

    @property
    def context(self) -> float:
        """Tokens that it reads and writes together at most."""
        return context_of(self.model.config)


def find(artifact: str, here: Here, base: Path | None = None) -> Subject:
    """The subject at an address or a path; `base` is where its base lies, if not where the plan says. Raises
    ModelError.
    """
    place = Place(uri=artifact, path=str(here.path(artifact, "model") if "://" in artifact else Path(artifact)))
    folder = Path(place.path)
    if not folder.is_dir():
        raise ModelError(f"{artifact}: there is no folder {folder}. Give an artefact's or a model's")
    plan = plan_of(place)
    adapted = folder / "adapter_config.json"
    if not adapted.is_file():
        check_files(place, quantized=True)
        return described(place, None)
    if plan is None:
        named = json.loads(adapted.read_text()).get("base_model_name_or_path")
        if base is None:
            raise ModelError(f"{artifact}: it is an adapter of {named}, without a job's plan: give the base by --base")
        return described(Place(uri=str(named), path=str(base)), place)
    return described(base_of(plan, here, base, place), place)


def planned(plan: InferencePlan) -> Subject:
    """The subject of an InferenceJob, by its files. Raises ModelError."""
    if plan.adapter is None:
        check_files(plan.model, quantized=True)
        return described(plan.model, None)
    check_adapter_files(plan.adapter, "spec.adapter")
    return described(fitting(plan.model, plan.adapter), plan.adapter)


def base_of(plan: TrainPlan, here: Here, given: Path | None, adapter: Place) -> Place:
    """Where the base of an adapter lies; the very one that it was trained from, where that is known."""
    path = given or Path(plan.model.path)
    if not path.is_dir() and given is None and not plan.model.uri.startswith("file://"):
        path = here.path(plan.model.uri, "model")
    if not path.is_dir():
        raise ModelError(
            f"{adapter.uri}: its base {plan.model.uri} is not here ({path}): give its folder by --base, or the folder "
            "with a folder for each claim by --claims"
        )
    return fitting(Place(uri=plan.model.uri, path=str(path)), adapter)


def fitting(base: Place, adapter: Place) -> Place:
    """The base, if it is a model, and the one that the adapter was trained from, as far as both know it."""
    check_files(base, quantized=True)
    wanted, found = manifest_of(adapter).get("base", {}).get("digest"), manifest_of(base).get("digest")
    if wanted and found and wanted != found:
        raise ModelError(f"{adapter.uri}: it was trained from {wanted}, but the base at {base.path} is {found}")
    return base


def described(model: Place, adapter: Place | None) -> Subject:
    """The subject, by its manifest, else by the model's files."""
    trained = trained_as(adapter or model) or Trained(method=method_of(model), max_length=MAX_LENGTH)
    return Subject(model, adapter, trained)


def method_of(model: Place) -> MethodPlan:
    """The method that a model's files speak of."""
    config, pooling = config_of(model), Path(model.path) / "1_Pooling" / "config.json"
    if pooling.is_file():
        last = json.loads(pooling.read_text()).get("pooling_mode_lasttoken")
        return MethodPlan(type="Embedding", embedding=Embedding(pooling="LastToken" if last else "Mean"))
    if not str((config.get("architectures") or [""])[0]).endswith("ForSequenceClassification"):
        return MethodPlan(type="SFT", sft=SFT())
    # transformers does not write the names of two classes that have none, and takes one label for a number.
    names = {int(key): str(name) for key, name in (config.get("id2label") or UNNAMED).items()}
    problem = "Regression" if len(names) == 1 else PROBLEMS.get(str(config.get("problem_type")), "SingleLabel")
    labels = None if problem == "Regression" else [names[key] for key in sorted(names)]
    return MethodPlan(type="Classification", classification=Classification(problem=problem, labels=labels))


def context_of(config: Any) -> float:
    """The context that a model's configuration speaks of, as it is stretched by RoPE scaling; infinite where it is
    silent.
    """
    text = config.get_text_config()
    known = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or {}
    if known and rope.get("factor"):
        return max(known, int(rope["factor"] * rope.get("original_max_position_embeddings", known)))
    return known or math.inf


def load(subject: Subject) -> Loaded:
    """The model with its adapter, for inference, on the GPU where there is one. Raises ModelError."""
    import torch

    from tunesmith_trainer.methods import classifiers, embedding

    dtype, device = compute_dtype("Auto"), "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = load_tokenizer(subject.model, subject.trained.chat_template)
    asked = cast("TrainPlan", subject)  # of which these look at the model and the method
    model: Any
    if subject.task == "Generate":
        # PEFT knows no layers of compressed-tensors; without an adapter they compute as an engine does. Packed layers
        # are those of the device that they are loaded to.
        where = device if is_packed(subject.model) else None
        model = load_model(subject.model, dtype, device=where, whole=WHOLE_TO_TRAIN if subject.adapter else ())
    elif subject.task == "Embed":
        model = embedding.load(asked, dtype, None, None)
    else:
        model = classifiers.load(asked, dtype, None, None)
    if subject.adapter:
        model = adapted(model, subject.adapter)
    return Loaded(subject, model.to(device).eval(), tokenizer)


def adapted(model: Any, adapter: Place) -> Any:
    """`model` with an adapter, all of it."""
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Found missing adapter keys")
            return PeftModel.from_pretrained(model, adapter.path)
    except (OSError, RuntimeError, ValueError, KeyError, UserWarning) as error:
        raise ModelError(f"adapter {adapter.uri}: it does not fit its base: {error}") from error
