"""Which weights are trained: all (Full) or some of them, adapters (LoRA, PEFT), or adapters over a base that is
quantised while it is loaded (QLoRA).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.training.plan import TunerPlan

from tunesmith_trainer import adapters
from tunesmith_trainer.errors import ConfigError, ModelError
from tunesmith_trainer.towers import frozen_linears, frozen_parts, linears, part_of

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import BitsAndBytesConfig, PreTrainedModel

BIASES = {"None": "none", "All": "all", "AdaptersOnly": "lora_only"}


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
    head = model.get_output_embeddings()
    return sorted({name.rsplit(".", 1)[-1] for name, module in linears(model).items() if module is not head})


def check_modules(model: PreTrainedModel, tuner: TunerPlan) -> None:
    """See that the modules are there that the plan names."""
    names = [name for name, _ in model.named_modules()]
    for target in tuner.target_modules:
        if target.rsplit(".", 1)[-1] == "lm_head":
            raise ConfigError("spec.tuner.targetModules: lm_head cannot have an adapter: leave it out")
    for field, wanted in (("targetModules", tuner.target_modules), ("modulesToSave", tuner.modules_to_save)):
        for target in wanted:
            if not any(name == target or name.endswith(f".{target}") for name in names):
                raise ConfigError(
                    f"spec.tuner.{field}: the model has no module {target}; choose of {linear_names(model)}"
                    + (", embed_tokens, lm_head and others" if field == "modulesToSave" else "")
                )
    if tuner.target_pattern is not None:
        try:
            found = [name for name in names if re.fullmatch(tuner.target_pattern, name)]
        except re.error as error:
            raise ConfigError(f"spec.tuner.targetPattern: it is no regular expression: {error}") from None
        if not found:
            raise ConfigError(
                f"spec.tuner.targetPattern: no module's whole name matches {tuner.target_pattern!r}; names are like "
                f"{next((n for n in reversed(names) if n.endswith(linear_names(model)[0])), names[-1])}"
            )


def add_adapter(model: PreTrainedModel, tuner: TunerPlan, float32: bool, task: str = "CAUSAL_LM") -> PeftModel:
    """`model` with a new adapter, in float32 or in the base's dtype: LoRA (arXiv 2106.09685) is h + (alpha / rank) B A
    x, with B = 0 at first.
    """
    from peft import get_peft_model

    check_modules(model, tuner)
    config = adapters.config(model, tuner, task) if tuner.peft else lora_config(model, tuner, task)
    try:
        return get_peft_model(model, config, autocast_adapter_dtype=float32)
    except (ValueError, KeyError, TypeError, ImportError, NotImplementedError, RuntimeError) as error:
        field = "peft" if tuner.peft else "targetModules"
        raise ConfigError(f"spec.tuner.{field}: {error}; the model's linear modules: {linear_names(model)}") from error


def lora_config(model: PreTrainedModel, tuner: TunerPlan, task: str) -> Any:
    """The LoRA of a plan, with its variants."""
    import torch
    from peft import LoraConfig

    # Where the head is the embeddings, a trained copy of one must be the other, too.
    both = (model.get_input_embeddings(), model.get_output_embeddings())
    ends = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if module in both}
    tied = getattr(model.config, "tie_word_embeddings", False) and bool(ends & set(tuner.modules_to_save))
    found: dict[str, Any] = linears(model)
    every: Any = "all-linear"
    if not all(isinstance(module, torch.nn.Linear) for module in found.values()):  # PEFT finds no others by itself
        every = [name for name, module in found.items() if module is not both[1]]
    return LoraConfig(
        task_type=task,
        r=tuner.rank,
        lora_alpha=int(tuner.alpha) if tuner.alpha == int(tuner.alpha) else tuner.alpha,  # type: ignore[arg-type]
        lora_dropout=tuner.dropout,
        target_modules=tuner.target_pattern or tuner.target_modules or every,
        modules_to_save=tuner.modules_to_save or None,
        ensure_weight_tying=tied,
        bias=BIASES[tuner.bias],  # type: ignore[arg-type]
        use_dora=tuner.dora,
        use_rslora=tuner.rs_lora,
        init_lora_weights="pissa" if tuner.initialization == "PiSSA" else True,
        exclude_modules=frozen_linears(model, tuner.freeze) or None,
    )


def keep_initial(model: PeftModel, folder: Path) -> None:
    """Write the adapter as it begins: what a PiSSA took out of the base is what it is later converted by."""
    model.save_pretrained(str(folder), save_embedding_layers=False)


def freeze(model: PreTrainedModel, tuner: TunerPlan) -> None:
    """Train the last layers only, and what the pattern matches. Nothing else of Full's weights."""
    import torch

    chosen: set[int] = set()
    if tuner.last_layers is not None:
        part: Any = model.get_decoder() or model
        stacks = [module for module in part.modules() if isinstance(module, torch.nn.ModuleList)]
        layers = max(stacks, key=len, default=torch.nn.ModuleList())
        if len(layers) < tuner.last_layers:
            raise ConfigError(f"spec.tuner.lastLayers: {tuner.last_layers}, but the model has {len(layers)}")
        chosen = {id(parameter) for layer in layers[-tuner.last_layers :] for parameter in layer.parameters()}
    if tuner.trainable_pattern is not None:
        try:
            found = [p for n, p in model.named_parameters() if re.search(tuner.trainable_pattern, n)]
        except re.error as error:
            raise ConfigError(f"spec.tuner.trainablePattern: it is no regular expression: {error}") from None
        if not found:
            last = [name for name, _ in model.named_parameters()][-1]
            raise ConfigError(
                f"spec.tuner.trainablePattern: no parameter matches {tuner.trainable_pattern!r}; names are like {last}"
            )
        chosen |= {id(parameter) for parameter in found}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)


def check_gradients(model: PreTrainedModel, uri: str) -> None:
    """See that gradients pass the layers that hold weights packed: some kernels drop them, and say nothing."""
    import torch

    model.train()
    for name, layer in linears(model).items():
        if isinstance(layer, torch.nn.Linear):
            continue
        held: Any = next(iter(layer.state_dict().values()))
        given = torch.ones(1, layer.in_features, dtype=model.dtype, device=held.device, requires_grad=True)  # type: ignore[call-overload]
        found = layer(given)
        if found.requires_grad:
            found.sum().backward()
        if given.grad is None or not given.grad.any():
            raise ModelError(
                f"model {uri}: no gradient passes {name} ({type(layer).__name__}), so that layers before it would not "
                "learn: use the full-precision release"
            )


def check_tuner(model: torch.nn.Module, tuner: TunerPlan) -> None:
    """See that exactly the weights that the plan says are trained, and that a quantised base is quantised."""
    import bitsandbytes

    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if tuner.type == "Full":
        frozen = [name for name in frozen if part_of(name) not in frozen_parts(tuner.freeze)]
        if tuner.partial != bool(frozen) or not trained:
            raise ConfigError(
                f"spec.tuner.type: Full, but {len(frozen)} parameters are not trained, for example {frozen[:1]}"
            )
        return
    marks = (*adapters.marks(model), ".modules_to_save.", *([".bias"] if tuner.bias != "None" else []))
    others = [name for name in trained if not any(mark in name for mark in marks)]
    if others or not trained:
        raise ConfigError(
            f"spec.tuner.type: {tuner.type}, but of {len(trained)} trained ones these are no adapter's: {others[:3]}"
        )
    if tuner.dora and not any("lora_magnitude_vector" in name for name in trained):
        raise ConfigError("spec.tuner.dora: Enabled, but the adapter has no magnitudes")
    if tuner.type == "QLoRA":
        kind: type[torch.nn.Module] = (
            bitsandbytes.nn.Linear4bit if tuner.quantization == "NF4" else bitsandbytes.nn.Linear8bitLt
        )
        if not any(isinstance(module, kind) for module in model.modules()):
            raise ConfigError(f"spec.tuner.quantization: {tuner.quantization}, but the model has no {kind.__name__}")
