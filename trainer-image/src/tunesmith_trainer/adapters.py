"""PEFT's other adapters: their configuration classes by name, and what of them a plan may set."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from tunesmith.api.tuner import PeftType
from tunesmith.training.plan import TunerPlan

from tunesmith_trainer.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

CLASSES: dict[PeftType, str] = {
    "AdaLoRA": "AdaLoraConfig",
    "BOFT": "BOFTConfig",
    "C3A": "C3AConfig",
    "DeLoRA": "DeloraConfig",
    "FourierFT": "FourierFTConfig",
    "GraLoRA": "GraloraConfig",
    "HiRA": "HiraConfig",
    "HRA": "HRAConfig",
    "IA3": "IA3Config",
    "LNTuning": "LNTuningConfig",
    "LoHa": "LoHaConfig",
    "LoKr": "LoKrConfig",
    "MiSS": "MissConfig",
    "OFT": "OFTConfig",
    "PrefixTuning": "PrefixTuningConfig",
    "PromptTuning": "PromptTuningConfig",
    "PTuning": "PromptEncoderConfig",
    "RandLoRA": "RandLoraConfig",
    "SHiRA": "ShiraConfig",
    "VBLoRA": "VBLoRAConfig",
    "VeRA": "VeraConfig",
}
# PEFT knows for most architectures which modules these are for.
OWN_TARGETS = frozenset({"IA3", "LNTuning"})
# What the plan's other fields, the base or the trainer say.
RESERVED = frozenset(
    {
        "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
        "inference_mode", "target_modules", "modules_to_save", "total_step", "token_dim", "num_attention_heads",
        "num_layers", "num_transformer_submodules", "prompt_tuning_init_text", "tokenizer_name_or_path",
        "tokenizer_kwargs", "loftq_config", "runtime_config",
    }
)  # fmt: skip
LONG = 1_000_000_000
"""AdaLoRA's number of steps until it is known."""
MADE = frozenset({"ADALORA", "P_TUNING", "PREFIX_TUNING"})
"""Adapters whose files hold what was made of the trained weights: of AdaLoRA the ranks that are left, of an encoder the
prompts that it gives. From these no training goes on."""
FILE = "trained.pt"
"""In a checkpoint, the trained weights of such an adapter."""
ALLOCATION = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""By what AdaLoRA judges ranks."""


def config(model: PreTrainedModel, tuner: TunerPlan, task: str) -> Any:
    """The configuration of a plan's adapter. Raises ConfigError for options that its class does not take."""
    import peft

    from tunesmith_trainer.tuner import linear_names

    assert tuner.peft
    kind: Any = getattr(peft, CLASSES[tuner.peft.type])
    fields = {field.name for field in dataclasses.fields(kind)}
    if unknown := sorted(tuner.peft.options.keys() - (fields - RESERVED)):
        raise ConfigError(
            f"spec.tuner.peft.options: {tuner.peft.type} takes no {', '.join(unknown)}; choose of "
            f"{', '.join(sorted(fields - RESERVED))}"
        )
    values: dict[str, Any] = {"task_type": task, **tuner.peft.options}
    if "target_modules" in fields:
        default = None if tuner.peft.type in OWN_TARGETS else linear_names(model)
        values["target_modules"] = tuner.target_pattern or tuner.target_modules or default
    elif tuner.target_modules or tuner.target_pattern:
        raise ConfigError(f"spec.tuner.targetModules: {tuner.peft.type} has none: leave it out")
    if tuner.modules_to_save:
        if "modules_to_save" not in fields:
            raise ConfigError(f"spec.tuner.modulesToSave: {tuner.peft.type} has none: leave it out")
        values["modules_to_save"] = tuner.modules_to_save
    if tuner.peft.type == "AdaLoRA":
        values["total_step"] = LONG
    if "num_virtual_tokens" in fields:
        values.setdefault("num_virtual_tokens", 20)
    try:
        return kind(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"spec.tuner.peft.options: {tuner.peft.type}: {error}") from error


def marks(model: Any) -> tuple[str, ...]:
    """Parts of the names of the adapter's parameters."""
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    kinds = {config.peft_type for config in model.peft_config.values()}
    return (*(PEFT_TYPE_TO_PREFIX_MAPPING[k] for k in kinds if k in PEFT_TYPE_TO_PREFIX_MAPPING), "prompt_encoder.")


def save(model: Any, checkpoint: Path) -> None:
    """Write the trained weights of an adapter that PEFT's files do not hold."""
    import torch

    config = getattr(model, "peft_config", {}).get("default")
    if config is None or config.peft_type not in MADE:
        return
    state: dict[str, Any] = {"weights": {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}}
    if config.peft_type == "ADALORA":
        state["ranks"] = config.rank_pattern
        state["allocation"] = {name: getattr(model.base_model.rankallocator, name) for name in ALLOCATION}
    torch.save(state, checkpoint / FILE)


def load(model: Any, checkpoint: Path) -> bool:
    """Read again what `save` wrote. Returns whether it wrote something."""
    import torch

    if not (checkpoint / FILE).is_file():
        return False
    device = next(parameter.device for parameter in model.parameters() if parameter.requires_grad)
    state = torch.load(checkpoint / FILE, map_location=device, weights_only=True)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in state["weights"].items():
            weights[name].copy_(tensor)
    if "allocation" in state:
        model.peft_config["default"].rank_pattern = state["ranks"]
        for name, found in state["allocation"].items():
            setattr(model.base_model.rankallocator, name, found)
    return True


class Allocation(TrainerCallback):
    """AdaLoRA: the ranks are shared out anew after each step (arXiv 2303.10512)."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model: Any = model

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tell it how many steps there are."""
        config = self.model.peft_config["default"]
        if config.tinit + config.tfinal >= state.max_steps:
            raise ConfigError(
                f"spec.tuner.peft.options: AdaLoRA's tinit {config.tinit} and tfinal {config.tfinal} leave none of the "
                f"{state.max_steps} steps to share out ranks: lower them, or train longer"
            )
        self.model.base_model.rankallocator.set_total_step(state.max_steps)
        config.total_step = state.max_steps

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The weights have moved and the gradients are still there, by which it judges."""
        self.model.base_model.update_and_allocate(state.global_step)
