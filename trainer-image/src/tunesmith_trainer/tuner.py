"""Which weights are trained: all (Full), adapters (LoRA), or adapters over a quantised base (QLoRA)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunesmith.training.plan import TunerPlan

from tunesmith_trainer.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import BitsAndBytesConfig, PreTrainedModel


def quantization_config(tuner: TunerPlan, compute: torch.dtype) -> BitsAndBytesConfig | None:
    """How bitsandbytes holds the base; None where the tuner does not quantise. NF4 with double quantisation is
    QLoRA's own setting (arXiv 2305.14314).
    """
    if tuner.quantization is None:
        return None
    from transformers import BitsAndBytesConfig

    if tuner.quantization == "Int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_storage=compute,
    )


def linear_names(model: PreTrainedModel) -> list[str]:
    """Last parts of the names of the linear modules but the output head."""
    import torch

    head = model.get_output_embeddings()
    return sorted(
        {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}
    )


def add_adapter(model: PreTrainedModel, tuner: TunerPlan, float32: bool, task: str = "CAUSAL_LM") -> PeftModel:
    """`model` with a new LoRA adapter (arXiv 2106.09685): h + (alpha / rank) B A x, B = 0 at first; in float32 or in
    the base's dtype.
    """
    from peft import LoraConfig, get_peft_model

    names = [name for name, _ in model.named_modules()]
    for target in tuner.target_modules:
        if target.rsplit(".", 1)[-1] == "lm_head":
            raise ConfigError("spec.tuner.targetModules: lm_head cannot have an adapter: leave it out")
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise ConfigError(
                f"spec.tuner.targetModules: the model has no module {target}; choose of {linear_names(model)}"
            )
    config = LoraConfig(
        task_type=task,
        r=tuner.rank,
        lora_alpha=int(tuner.alpha) if tuner.alpha == int(tuner.alpha) else tuner.alpha,  # type: ignore[arg-type]
        lora_dropout=tuner.dropout,
        target_modules=tuner.target_modules or "all-linear",
        bias="none",
    )
    try:
        return get_peft_model(model, config, autocast_adapter_dtype=float32)
    except ValueError as error:
        raise ConfigError(f"spec.tuner.targetModules: {error}; choose of {linear_names(model)}") from error


def check_tuner(model: torch.nn.Module, tuner: TunerPlan) -> None:
    """See that exactly the weights that the plan says are trained, and that a quantised base is quantised."""
    import bitsandbytes

    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if tuner.type == "Full":
        if frozen:
            raise ConfigError(
                f"spec.tuner.type: Full, but {len(frozen)} parameters are not trained, for example {frozen[0]}"
            )
        return
    others = [name for name in trained if ".lora_" not in name and ".modules_to_save." not in name]
    if others or not trained:
        raise ConfigError(
            f"spec.tuner.type: {tuner.type}, but of {len(trained)} trained ones these are no adapter's: {others[:3]}"
        )
    if tuner.type == "QLoRA":
        kind: type[torch.nn.Module] = (
            bitsandbytes.nn.Linear4bit if tuner.quantization == "NF4" else bitsandbytes.nn.Linear8bitLt
        )
        if not any(isinstance(module, kind) for module in model.modules()):
            raise ConfigError(f"spec.tuner.quantization: {tuner.quantization}, but the model has no {kind.__name__}")
