"""A model that is never whole in memory: its weights are read from its files module by module.

`skeleton` has parameters without storage; `stream` lets each module read its own weights when it is called, and drop
them afterwards; `write` makes new files out of the old ones, one after the other. So the largest shard is the most that
is held, whatever the size of the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.training.plan import Place

from tunesmith_trainer.errors import ModelError

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
Update = Callable[[], "torch.Tensor"]


class Weights:
    """The tensors of a model's *.safetensors files, read when asked for."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self.files = {path.name: safe_open(path, framework="pt") for path in sorted(folder.glob("*.safetensors"))}
        self.names = {name: file for file, opened in self.files.items() for name in opened.keys()}  # noqa: SIM118

    def get(self, name: str) -> torch.Tensor:
        """One tensor, as it is stored."""
        tensor: torch.Tensor = self.files[self.names[name]].get_tensor(name)
        return tensor


def skeleton(place: Place) -> Any:
    """The model at `place` with parameters that have shapes and no storage. Buffers are real."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(place.path, trust_remote_code=False)
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"model {place.uri}: it cannot be made from its config.json: {error}") from error
    model.tie_weights()
    known: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                known.setdefault(id(parameter), _empty(parameter.shape))
                module._parameters[name] = known[id(parameter)]
    return model.eval()


def _empty(shape: Any) -> torch.nn.Parameter:
    """A parameter of zeros that takes no memory: every element is the same one. On CPU, so that adapters are, too."""
    import torch

    return torch.nn.Parameter(torch.zeros((), dtype=torch.float32).expand(shape), requires_grad=False)


def stored_names(model: Any, weights: Weights) -> dict[str, str] | None:
    """Parameter -> name in the files. None: they do not correspond one to one, as where the library converts them."""
    shared: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        shared.setdefault(id(parameter), []).append(name)
    found: dict[str, str] = {}
    for names in shared.values():
        stored = [name for name in names if name in weights.names]
        if not stored:
            return None
        found |= dict.fromkeys(names, stored[0])
    buffers = {name for name, _ in model.named_buffers()}
    strangers = {n for n in weights.names if n not in found and n not in buffers and "inv_freq" not in n}
    return None if strangers else found


def stream(model: Any, weights: Weights, names: Mapping[str, str]) -> None:
    """Let each module read its own weights, in float32, when it is called, and drop them afterwards."""

    def hooked(module: Any, own: dict[str, str]) -> None:
        empty = {name: module._parameters[name].data for name in own}

        def before(*_: Any) -> None:
            for name, stored in own.items():
                module._parameters[name].data = weights.get(stored).float()

        def after(*_: Any) -> None:
            for name in own:
                module._parameters[name].data = empty[name]

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    for path, module in model.named_modules():
        own = {name: names[f"{path}.{name}".lstrip(".")] for name, p in module._parameters.items() if p is not None}
        if own:
            hooked(module, own)


def write(weights: Weights, updates: Mapping[str, Update], dtype: torch.dtype, source: Path, folder: Path) -> None:
    """New files with the updates added, in `dtype`; one file at a time is held."""
    import torch
    from safetensors.torch import save_file

    size = 0
    for file, opened in weights.files.items():
        shard = {}
        for name in opened.keys():  # noqa: SIM118
            tensor = opened.get_tensor(name)
            if tensor.is_floating_point():
                whole = tensor.float() + updates[name]() if name in updates else tensor
                if not torch.isfinite(whole).all():
                    raise ModelError(
                        f"{name} is not finite after merging: see whether the adapter diverged in training"
                    )
                tensor = whole.to(dtype).contiguous()
            shard[name] = tensor
            size += tensor.numel() * tensor.element_size()
        save_file(shard, folder / file, metadata={"format": "pt"})
    if (source / INDEX).is_file():
        index = json.loads((source / INDEX).read_text())
        index.setdefault("metadata", {})["total_size"] = size
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
