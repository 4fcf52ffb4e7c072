"""The formats of compressed-tensors, which vLLM and transformers read: FP8, W8A8 and W4A16, rounded to nearest.

The scale of each row (or group of a row) is chosen so that its largest value is the format's largest; activations,
where they are quantised too, get theirs when the model runs. So no calibration data is needed. Embeddings and the
output head stay as they are. Weights are read and written file by file: the largest file is the most that is held.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.training.plan import Place, QuantizationPlan

from tunesmith_trainer import streaming
from tunesmith_trainer.errors import ConfigError
from tunesmith_trainer.model import own_dtype, save_companions

if TYPE_CHECKING:
    import torch
    from compressed_tensors.quantization import QuantizationScheme

PRESETS = {"FP8": "FP8_DYNAMIC", "W8A8": "W8A8", "W4A16": "W4A16"}


def write(source: Place, plan: QuantizationPlan, folder: Path) -> None:
    """Write the model at `source`, quantised, into the folder."""
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus
    from safetensors.torch import save_file

    scheme = scheme_of(plan)
    weights, model = streaming.Weights(Path(source.path)), streaming.skeleton(source)
    linear, ignored = layers(source, model, weights, plan)
    size, places = 0, {}
    for file, opened in weights.files.items():
        shard: dict[str, torch.Tensor] = {}
        for name in opened.keys():  # noqa: SIM118
            tensor = opened.get_tensor(name)
            if name in linear:
                path = name.removesuffix("weight")
                shard |= {path + part: value for part, value in compress(tensor, scheme).items()}
            else:
                shard[name] = tensor
        save_file(shard, folder / file, metadata={"format": "pt"})
        size += sum(tensor.nbytes for tensor in shard.values())
        places |= dict.fromkeys(shard, file)
    if len(weights.files) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": places}
        (folder / streaming.INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    config = QuantizationConfig(
        config_groups={"group_0": scheme},
        format=scheme.format,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=ignored,
    )
    changes = {"quantization_config": json.loads(config.model_dump_json(exclude_none=True))}
    save_companions(source, own_dtype(source), folder, changes)


def scheme_of(plan: QuantizationPlan) -> QuantizationScheme:
    """What compressed-tensors knows the method by."""
    import torch
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import preset_name_to_scheme

    scheme = preset_name_to_scheme(PRESETS[plan.method], ["Linear"])
    if scheme.weights and plan.group_size:
        scheme.weights.group_size = plan.group_size
    scheme.format = infer_module_format(torch.nn.Linear, scheme)
    return scheme


def layers(source: Place, model: Any, weights: streaming.Weights, plan: QuantizationPlan) -> tuple[set[str], list[str]]:
    """Names of the weights that are quantised, and of linear layers that are not."""
    import torch

    names = streaming.stored_names(model, weights)
    if names is None:
        raise ConfigError(
            f"spec.quantization: {source.uri} is a {model.config.model_type}, whose files hold other weights than its "
            "linear layers (as of merged experts); only what is stored layer by layer is quantised here"
        )
    head = model.get_output_embeddings()
    linear, ignored, group = set(), [], plan.group_size
    for path, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        if module is head:
            ignored.append(path)
        elif group and module.in_features % group:
            raise ConfigError(
                f"spec.quantization.groupSize {group}: {path} has {module.in_features} features, which is no multiple "
                f"of it; of this layer {largest_group(module.in_features)} is the largest that fits"
            )
        else:
            linear.add(names[f"{path}.weight"])
    return linear, ignored


def largest_group(features: int) -> int:
    """The largest usual group size that divides a number of features."""
    return next((size for size in (128, 64, 32) if features % size == 0), 0)


def compress(weight: torch.Tensor, scheme: QuantizationScheme) -> dict[str, torch.Tensor]:
    """Of a weight of shape (out, in): what is stored instead, by name in its layer."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization.utils import calculate_qparams

    assert scheme.weights
    rows = weight.unflatten(-1, (-1, scheme.weights.group_size or weight.shape[-1]))
    scale, _ = calculate_qparams(rows.amin(-1), rows.amax(-1), scheme.weights)
    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    stored: dict[str, torch.Tensor] = compressor.compress({"weight": weight, "weight_scale": scale}, scheme)
    return {name: tensor.contiguous() for name, tensor in stored.items()}
