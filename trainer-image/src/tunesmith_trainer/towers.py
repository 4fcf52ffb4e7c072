"""The parts of a multi-modal model: towers (vision, audio), aligner, language model. Which of them learn, how fast, and
a classifier's head over them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.training.plan import FreezePlan, TrainPlan

from tunesmith_trainer.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Part = Literal["towers", "aligner", "language_model"]
# The names that transformers gives modules of multi-modal models (PreTrainedModel.get_encoder has the towers').
TOWERS = {
    "vision_tower", "visual", "vision_model", "vision_encoder", "image_tower", "audio_tower", "audio_encoder",
    "speech_encoder",
}  # fmt: skip
ALIGNERS = {
    "multi_modal_projector", "merger", "merger_list", "deepstack_merger_list", "connector", "aligner", "projector",
    "modality_projection", "embed_vision", "embed_audio", "audio_projector",
}  # fmt: skip


def part_of(name: str) -> Part:
    """The part that a module or parameter of this name belongs to."""
    path = name.split(".")
    if ALIGNERS & set(path) or ("audio_tower", "proj") in pairwise(path):
        return "aligner"
    return "towers" if TOWERS & set(path) else "language_model"


def has_towers(model: torch.nn.Module) -> bool:
    """Whether a model reads more than text."""
    return any(part_of(name) == "towers" for name, _ in model.named_parameters())


def frozen_parts(freeze: FreezePlan) -> set[Part]:
    """The parts that do not learn."""
    parts: dict[Part, bool] = {
        "towers": freeze.towers, "aligner": freeze.aligner, "language_model": freeze.language_model
    }  # fmt: skip
    return {part for part, frozen in parts.items() if frozen}


def freeze_parts(model: torch.nn.Module, freeze: FreezePlan) -> None:
    """Keep the frozen parts' weights as they are. Heads and the rest belong to the language model, but a head that is
    new learns in any case.
    """
    parts = frozen_parts(freeze)
    for name, parameter in model.named_parameters():
        if part_of(name) in parts and name.split(".")[0] != "score":
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("spec.tuner.freeze: it leaves nothing to be learned: set languageModel to false")


def linears(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The linear modules by name: torch's, and gptqmodel's, which are none of these, but have a `qweight`."""
    import torch

    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) or hasattr(module, "qweight")
    }


def frozen_linears(model: torch.nn.Module, freeze: FreezePlan) -> list[str]:
    """The linear modules of frozen parts, which get no adapter."""
    parts = frozen_parts(freeze)
    found = [(name, part_of(name)) for name in linears(model)]
    if all(part in parts for _, part in found):
        raise ConfigError("spec.tuner.freeze: it leaves nothing to be learned: set languageModel to false")
    return [name for name, part in found if part in parts and name != "score"]


def set_learning_rates(optimizer: torch.optim.Optimizer, model: torch.nn.Module, plan: TrainPlan) -> None:
    """Give towers and aligner their own rates, by splitting the optimizer's groups. The scheduler scales all alike."""
    rates = plan.training.learning_rates.model_dump()
    if not any(rates.values()):
        return
    parts = {parameter: part_of(name) for name, parameter in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        for part in dict.fromkeys(parts.get(p, "language_model") for p in group["params"]):
            own = [p for p in group["params"] if parts.get(p, "language_model") == part]
            groups.append({**group, "params": own, "lr": rates.get(part) or group["lr"]})
    optimizer.param_groups[:] = groups


def classifier_class(config: Any) -> type[PreTrainedModel]:
    """The class of a family's sequence classifier: transformers' own, else one over its backbone, which reads all that
    the family reads.
    """
    from transformers import AutoModel, AutoModelForMultimodalLM, AutoModelForSequenceClassification
    from transformers.conversion_mapping import (
        get_checkpoint_conversion_mapping,
        register_checkpoint_conversion_mapping,
    )
    from transformers.modeling_layers import GenericForSequenceClassification

    known: Any = AutoModelForSequenceClassification._model_mapping
    if type(config) in known:
        return known[type(config)]  # type: ignore[no-any-return]
    backbones: Any = AutoModel._model_mapping
    backbone = backbones[type(config)]
    made = type(
        backbone.__name__.removesuffix("Model") + "ForSequenceClassification",
        (GenericForSequenceClassification, backbone.__mro__[1]),
        {"__module__": __name__, "accepts_loss_kwargs": False},
    )
    # Some families' files name weights otherwise than their classes do.
    writers: Any = AutoModelForMultimodalLM._model_mapping
    renamed = get_checkpoint_conversion_mapping(writers[type(config)].__name__) if type(config) in writers else None
    if renamed:
        register_checkpoint_conversion_mapping(made.__name__, renamed, overwrite=True)
    AutoModelForSequenceClassification.register(type(config), made, exist_ok=True)
    return made
