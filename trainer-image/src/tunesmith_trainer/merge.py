"""Merging: base + adapters -> one whole model, compared as it lies on disk with what it replaces.

The error of the merge is ||a - b|| / ||a||. a are the logits of the full-precision base with the adapters applied by
PEFT, unmerged. b are the logits of the merged model as it was saved: read anew from disk, with its weights rounded to
the saved dtype. Both are computed in float32 over the prompts of `comparison`, and the norm is over all logits of all
prompts together. So the error is the merge's own, rounding of the weights included. Were b computed in bfloat16 too,
the arithmetic alone would cost more than the merge (SmolLM2-135M: 0.022 for the base against itself, 0.010 for a
merge).
"""

from __future__ import annotations

import gc
import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.api.mergejob import Combine
from tunesmith.training.capabilities import FULL_PRECISION, base_of
from tunesmith.training.plan import MergeAdapterPlan, MergePlan, Place
from tunesmith.training.report import Ending

from tunesmith_trainer import streaming
from tunesmith_trainer.comparison import logit_error, logits, saved_logits
from tunesmith_trainer.errors import CheckFailed, ConfigError, ModelError
from tunesmith_trainer.export import export
from tunesmith_trainer.model import (
    WHOLE_TO_MERGE,
    check_adapter_files,
    check_files,
    keep_ends,
    load_model,
    load_tokenizer,
    manifest_of,
    own_dtype,
    save_companions,
    save_model,
)
from tunesmith_trainer.trained import TEMPLATE, merged_as, merged_template

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

UNMERGEABLE = frozenset({"PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING"})
DTYPES = {"BFloat16": "bfloat16", "Float16": "float16", "Float32": "float32"}

COMBINATIONS = {
    "Cat": "cat",
    "Linear": "linear",
    "SVD": "svd",
    "TIES": "ties",
    "DARELinear": "dare_linear",
    "DARETIES": "dare_ties",
}


def merge(plan: MergePlan) -> Ending:
    """Merge as `plan` says, check the result, and publish it."""
    base = base_of(check_files(plan.model, quantized=True))
    if base not in (FULL_PRECISION, *WHOLE_TO_MERGE):
        raise ModelError(
            f"model {plan.model.uri}: it is quantised by {base}, from which its weights cannot be turned back: serve "
            "base and adapter by a ModelDeployment, or merge into the full-precision release"
        )
    steps = Counter(adapter.step for adapter in plan.adapters)
    for index, adapter in enumerate(plan.adapters):
        # A later step's adapter was trained from what the steps before it made.
        base_ = plan.model if adapter.step == 1 else None
        as_it_is = steps[adapter.step] == 1 and adapter.weight == 1
        check_adapter(adapter, base_, f"adapters[{index}]", as_it_is, as_it_is and len(steps) == 1)
    tokenizer = load_tokenizer(plan.model)
    template = merged_template(plan.adapters, tokenizer.chat_template)
    _, open_ = merged_as(plan.adapters)

    import torch

    from tunesmith_trainer import artifact

    torch.manual_seed(0)
    dtype = own_dtype(plan.model) if plan.dtype == "Auto" else getattr(torch, DTYPES[plan.dtype])
    with artifact.draft(plan, "models") as folder:
        expected = merge_files(plan, dtype, tokenizer, folder)
        if expected is None:  # the library converts this architecture's weights when it loads them
            expected = merge_whole(plan, dtype, tokenizer, folder)
        if template != tokenizer.chat_template:
            (folder / TEMPLATE).write_text(template)
        gc.collect()
        merged = Place(uri=f"{plan.model.uri}, merged", path=str(folder))
        keep_ends(merged)
        found = saved_logits(merged, dtype, tokenizer)
        error = logit_error(expected, found)
        print(f"logit error {error:.3e}, tolerance {plan.tolerance:g}")
        if not error <= plan.tolerance:  # nan is no pass
            raise CheckFailed(
                f"the merged model's logits differ from base + adapters by {error:.4g} (norm of the difference over "
                f"norm), more than spec.check.tolerance {plan.tolerance:g}: choose a finer spec.dtype than "
                f"{str(dtype).removeprefix('torch.')}, or see whether the adapters were trained from this base"
            )
        smaller = None
        if plan.quantization is None:
            made = artifact.publish(folder, plan, "models", {"error of the merged logits": error})
        else:
            with artifact.draft(plan, "models", "-quantized") as quantized:
                smaller = export(merged, plan.quantization, quantized, found)
                metrics = {"error of the merged logits": error, "error of the quantised logits": smaller}
                made = artifact.publish(quantized, plan, "models", metrics)
    print(f"artefact {made.uri}")
    message = f"merged {len(plan.adapters)} adapter(s)"
    if open_:
        message += (
            f"; they were trained with different {' and '.join(f'chatTemplate.{name}' for name in open_)}: an "
            "InferenceJob asks the model without, so rows have to say it"
        )
    return Ending(
        reason="Completed",
        message=message,
        artifact=made,
        logit_error=error,
        quantization_error=smaller,
    )


def merge_files(
    plan: MergePlan, dtype: torch.dtype, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> list[torch.Tensor] | None:
    """Merge file by file into `folder`, and return the logits of base + adapters; the largest file is the most that is
    held. None, and nothing written, where the files do not hold the model's weights as they are.
    """
    if not all(plain(adapter) for adapter in plan.adapters):
        return None
    weights, model = streaming.Weights(Path(plan.model.path)), streaming.skeleton(plan.model)
    names = streaming.stored_names(model, weights)
    if names is None:
        return None
    stored = {id(module): names.get(f"{path}.weight") for path, module in model.named_modules()}
    uses = Counter(name for name in names.values())
    streaming.stream(model, weights, names)
    applied = apply_adapters(model, plan.adapters, plan.combine)
    changed = updates(applied, stored)
    if changed is None or any(uses[name] > 1 for name in changed):
        return None
    expected = logits(applied, tokenizer)
    streaming.write(weights, changed, dtype, Path(plan.model.path), folder)
    save_companions(plan.model, dtype, folder)
    return expected


def updates(model: PeftModel, stored: Mapping[int, str | None]) -> dict[str, streaming.Update] | None:
    """Name of a weight -> what is added to it. None where an adapter changes something that is no stored weight."""
    from peft.tuners.lora import LoraLayer

    active, result = list(model.base_model.active_adapters), {}
    for module in model.modules():
        if isinstance(module, LoraLayer):
            name = stored.get(id(module.get_base_layer()))
            if name is None:
                return None
            result[name] = partial(total_update, module, active)
    return result


def total_update(layer: Any, active: Sequence[str]) -> torch.Tensor:
    """The sum of the updates of a layer's adapters."""
    return sum(layer.get_delta_weight(name).float() for name in active if name in layer.r)  # type: ignore[no-any-return]


def merge_whole(
    plan: MergePlan, dtype: torch.dtype, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> list[torch.Tensor]:
    """The same with the whole model in memory, in float32."""
    import torch

    model = apply_adapters(load_model(plan.model, torch.float32, whole=WHOLE_TO_MERGE), plan.adapters, plan.combine)
    expected = logits(model, tokenizer)
    merged: Any = model.merge_and_unload(adapter_names=list(model.base_model.active_adapters), safe_merge=True)
    save_model(merged, plan.model, dtype, folder)
    return expected


REPLACING = {"modules_to_save": "whole modules", "trainable_token_indices": "tokens", "lora_bias": "biases"}
"""Fields of a LoRA's configuration that bring new weights in the place of the base's, by what these are."""
ADDING = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initialisations of a LoRA that leave the base as it is."""


def config_of(adapter: Place) -> dict[str, Any]:
    """An adapter's configuration."""
    found: dict[str, Any] = json.loads((Path(adapter.path) / "adapter_config.json").read_text())
    return found


def replaced(config: dict[str, Any]) -> list[str]:
    """What an adapter replaces of the base."""
    found = [what for name, what in REPLACING.items() if config.get(name)]
    return found + (["biases"] if config.get("bias", "none") != "none" and "biases" not in found else [])


def plain(adapter: Place) -> bool:
    """Whether an adapter only adds products of matrices to weights."""
    config = config_of(adapter)
    return (
        config.get("peft_type") == "LORA"
        and not config.get("use_dora")
        and not replaced(config)
        and config.get("init_lora_weights", True) in ADDING
    )


def check_adapter(adapter: Place, base: Place | None, label: str, as_it_is: bool = False, alone: bool = False) -> None:
    """See by its files that an adapter is one that can be merged, in safetensors, and not of another base, if that is
    known. Where it is not taken `as_it_is`, but weighted or combined with others, it must be a sum of products, which
    add up; and only `alone` may it be something else than a LoRA, or fit a base that is changed first.
    """
    folder = Path(adapter.path)
    if not folder.is_dir():
        raise ModelError(f"{label} {adapter.uri}: there is no folder {folder}. Check the address")
    check_adapter_files(adapter, label)
    config = config_of(adapter)
    kind = "DoRA" if config.get("use_dora") else config.get("peft_type")
    if kind in UNMERGEABLE:
        raise ModelError(f"{label} {adapter.uri}: it is a {kind}, which is no change of weights and cannot be merged")
    if kind != "LORA" and not alone:
        raise ModelError(f"{label} {adapter.uri}: it is a {kind}; only LoRA adapters are weighted and combined")
    if not as_it_is and (whole := replaced(config)):
        raise ModelError(
            f"{label} {adapter.uri}: beside LoRA it has {' and '.join(whole)} in the place of the base's, which cannot "
            "be weighted or combined: merge it with weight 1, in a step of its own"
        )
    begun = config.get("init_lora_weights", True)
    if begun not in ADDING and not alone:
        raise ModelError(
            f"{label} {adapter.uri}: it begins as {begun}, and fits no base but one that this was taken out of: merge "
            "it alone, or convert it to a plain LoRA (PEFT's path_initial_model_for_weight_conversion)"
        )
    wanted = manifest_of(adapter).get("base", {}).get("digest")
    given = manifest_of(base).get("digest") if base else None
    if base and wanted and given and wanted != given:
        raise ModelError(
            f"{label} {adapter.uri}: it was trained from the base {wanted}, but spec.model {base.uri} is {given}: "
            "merge it into its own base"
        )


def apply_adapters(model: PreTrainedModel, adapters: list[MergeAdapterPlan], how: Combine) -> PeftModel:
    """`model` with the adapters of each step combined, and all steps active together, unmerged. An update does not
    depend on the weights that it is added to, so steps add up.
    """
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    result: Any = None
    names = [f"adapter{index}" for index in range(len(adapters))]
    for name, adapter in zip(names, adapters, strict=True):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Found missing adapter keys")  # it is an error below
                if result is None:
                    result = PeftModel.from_pretrained(model, adapter.path, adapter_name=name)
                else:
                    result.load_adapter(adapter.path, adapter_name=name)
        except (RuntimeError, ValueError, KeyError) as error:
            raise ModelError(f"adapters: {adapter.uri} does not fit the base: {error}") from error
        stored = load_file(Path(adapter.path) / "adapter_model.safetensors")
        state = get_peft_model_state_dict(result, adapter_name=name, save_embedding_layers=False)
        loaded = sum(key in state and torch.equal(state[key].to(t.dtype), t) for key, t in stored.items())
        if loaded != len(stored) or len(state) != len(stored):
            raise ModelError(
                f"adapters: {adapter.uri} does not fit the base: {len(stored)} tensors stored, {len(state)} places for "
                f"them, {loaded} loaded"
            )
    wanted = [
        combine(
            result, [(name, one.weight) for name, one in zip(names, adapters, strict=True) if one.step == step], how
        )
        for step in sorted({adapter.step for adapter in adapters})
    ]
    try:
        result.base_model.set_adapter(wanted)
    except ValueError as error:
        raise ModelError(
            "adapters: those of several steps have whole modules in the place of the base's: merge one after "
            f"the other, each by a MergeJob of its own ({str(error)[:200]})"
        ) from error
    active = set(result.base_model.active_adapters)
    if active != set(wanted):
        raise ConfigError(f"adapters: {sorted(active)} of {wanted} are applied")
    return result.eval()  # type: ignore[no-any-return]


def combine(model: PeftModel, members: list[tuple[str, float]], how: Combine) -> str:
    """The name of an adapter that is the weighted combination of `members`."""
    if len(members) == 1 and members[0][1] == 1:
        return members[0][0]
    names, weights = [name for name, _ in members], [weight for _, weight in members]
    # Of one adapter, every method would be the same but for what it drops: only its weight is meant.
    method = COMBINATIONS[how.method] if len(members) > 1 else "cat"
    more: dict[str, Any] = {"density": how.density} if how.density and len(members) > 1 else {}
    if how.rank:
        more["svd_rank"] = how.rank
    name = "_".join(names) + "_combined"
    # What is combined holds the adapters' own scales: PEFT would scale it by the first one's rule again.
    model.peft_config[names[0]].use_rslora = False  # type: ignore[attr-defined]
    try:
        cast: Any = model
        cast.add_weighted_adapter(names, weights, name, combination_type=method, **more)
    except ValueError as error:
        ranks = {one: model.peft_config[one].r for one in names}
        raise ConfigError(f"spec.combine.method {how.method}: {error} (ranks: {ranks}); Cat takes any ranks") from error
    return name
