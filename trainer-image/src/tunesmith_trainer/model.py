"""Base models: checked by their files, loaded in a stated dtype, saved with their own tokenizer and configuration."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.artifacts import MANIFEST
from tunesmith.training.capabilities import FULL_PRECISION, PACKAGES, base_of, quantizer
from tunesmith.training.plan import ChatPlan, Place

from tunesmith_trainer.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerFast

# Files of a model that are neither weights nor configuration. A model trained from it carries them unchanged.
COMPANIONS = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "chat_template*",
    "additional_chat_templates/*", "generation_config.json", "LICENSE*", "*processor_config.json",
)  # fmt: skip


def check_files(place: Place, quantized: bool = False) -> dict[str, Any]:
    """See that a model in Hugging Face's layout lies at `place`, by its files only; one that is quantised already only
    with `quantized`. Returns its config.json.
    """
    folder = Path(place.path)
    if not folder.is_dir():
        raise ModelError(f"model {place.uri}: there is no folder {folder}. Check the address")
    found = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"model {place.uri}: no config.json in {folder}; found {found[:20]}. The address must be a model's folder"
        )
    if not any(name.endswith(".safetensors") for name in found):
        raise ModelError(
            f"model {place.uri}: no *.safetensors in {folder}; found {found[:20]}. Convert pickled weights"
        )
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except ValueError as error:
        raise ModelError(f"model {place.uri}: config.json is no JSON: {error}") from None
    base = base_of(config)
    if base is None or (base != FULL_PRECISION and not quantized):
        raise ModelError(
            f"model {place.uri}: it is quantised ({quantizer(config).get('quant_method')}); use its "
            "full-precision release (tuner QLoRA quantises it by itself)"
        )
    if missing := [name for name in PACKAGES.get(base, ()) if find_spec(name) is None]:
        raise ModelError(
            f"model {place.uri}: it is quantised by {base}, whose layers need {' and '.join(missing)}, which this "
            "image does not have: name one that has it in spec.podTemplate.image, or use the full-precision release"
        )
    return config


def check_adapter_files(place: Place, label: str) -> None:
    """See that an adapter in PEFT's layout lies at `place`, by its files only. `label` names it in errors."""
    folder = Path(place.path)
    missing = [name for name in ("adapter_config.json", "adapter_model.safetensors") if not (folder / name).is_file()]
    if missing:
        found = sorted(path.name for path in folder.iterdir())[:20] if folder.is_dir() else "no folder"
        raise ModelError(f"{label} {place.uri}: no {' and no '.join(missing)}; found {found}; expected a PEFT adapter")


def manifest_of(place: Place) -> dict[str, Any]:
    """The manifest of the artefact at `place`; empty where it is not one of ours."""
    path = Path(place.path) / MANIFEST
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def compute_dtype(asked: Literal["Auto", "BFloat16", "Float32"]) -> torch.dtype:
    """The dtype of the matrix products. Auto: bfloat16 where the accelerator has it, else float32."""
    import torch

    has = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if asked == "BFloat16" or (asked == "Auto" and has) else torch.float32


def own_dtype(place: Place) -> torch.dtype:
    """The dtype of a model's weights, by config.json, else by its first weight."""
    import torch
    from safetensors import safe_open

    config = json.loads((Path(place.path) / "config.json").read_text())
    name = config.get("dtype") or config.get("torch_dtype")
    if name is None:
        with safe_open(next(iter(sorted(Path(place.path).glob("*.safetensors")))), framework="pt") as file:
            first: torch.Tensor = file.get_tensor(next(iter(file.keys())))
        return first.dtype
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ModelError(f"model {place.uri}: config.json says dtype {name!r}, which is none of torch's")
    return dtype


def load_tokenizer(place: Place, chat: ChatPlan | None = None) -> PreTrainedTokenizerFast:
    """The model's own tokenizer, with its chat template or what `chat` says."""
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(place.path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"model {place.uri}: its tokenizer cannot be loaded: {error}") from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"model {place.uri}: its tokenizer is no fast one (tokenizer.json), which exact loss masks need"
        )
    if tokenizer.eos_token is None:
        raise ModelError(f"model {place.uri}: its tokenizer has no eos_token, so the model could not learn to stop")
    from tunesmith_trainer.chat import set_up
    from tunesmith_trainer.multimodal import load_processor

    tokenizer.multimodal = load_processor(place, config_of(place))
    set_up(tokenizer, chat or ChatPlan(), ends_of(place))
    tokenizer.files_digest = digest_of(place)
    return tokenizer  # type: ignore[no-any-return]


def digest_of(place: Place) -> str:
    """The hash of all of a model's small files that tokens may depend on."""
    found = hashlib.sha256()
    folder = Path(place.path)
    for path in sorted({path for pattern in (*COMPANIONS, "config.json") for path in folder.glob(pattern)}):
        if path.is_file():
            found.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return found.hexdigest()


def ends_of(place: Place) -> list[int]:
    """The tokens at which the model's generation ends, by its generation_config.json."""
    path = Path(place.path) / "generation_config.json"
    found = json.loads(path.read_text()).get("eos_token_id") if path.is_file() else None
    return [found] if isinstance(found, int) else list(found or [])


def keep_ends(made: Place) -> None:
    """Let engines end an answer of a model that was made where its chat template ends a turn: the end of text of base
    models with a template is another, at which one that learned conversations never ends.
    """
    write_ends(Path(made.path), made, load_tokenizer(made))


def write_ends(folder: Path, model: Place, tokenizer: PreTrainedTokenizerFast) -> None:
    """In `folder`, that of a model or an adapter, where answers end, if `model` itself has them end elsewhere."""
    from tunesmith_trainer.chat import ends

    found = ends(tokenizer)
    if set(found) - {tokenizer.eos_token_id, *ends_of(model)}:
        path = folder / "generation_config.json"
        settings = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**settings, "eos_token_id": found}, indent=2, sort_keys=True) + "\n")


def config_of(place: Place) -> dict[str, Any]:
    """The model's config.json."""
    found: dict[str, Any] = json.loads((Path(place.path) / "config.json").read_text())
    return found


def model_class(place: Place, head: Literal["CausalLM", "SequenceClassification", "None"]) -> Any:
    """The class that loads a model with a head: for one that reads more than text, the one that does so, too."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES as MULTIMODAL

    config = config_of(place)
    reads = any(f"{part}_config" in config for part in ("vision", "audio", "thinker"))
    if head == "SequenceClassification" and reads:
        from tunesmith_trainer.towers import classifier_class

        return classifier_class(transformers.AutoConfig.from_pretrained(place.path))
    if head == "CausalLM" and reads and config.get("model_type") in MULTIMODAL:
        return transformers.AutoModelForMultimodalLM
    return getattr(transformers, "AutoModel" if head == "None" else f"AutoModelFor{head}")


def load_model(
    place: Place,
    dtype: torch.dtype,
    quantization: BitsAndBytesConfig | None = None,
    device: str | int | dict[str, Any] | None = None,
    head: Literal["CausalLM", "SequenceClassification", "None"] = "CausalLM",
    distributed: Any = None,
    whole: tuple[str, ...] = (),
    **config: Any,
) -> PreTrainedModel:
    """The model with its weights in `dtype` (quantised layers apart), on `device` (default: CPU) or laid out by such
    arguments of from_pretrained, with a head that is new where the model's files have none, and changes of its
    configuration; or shared by processes, as `distributed` says. Weights that are stored quantised, in one of the forms
    `whole`, are turned back into `dtype`.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    stored = base_of(config_of(place))
    if quantization:  # given as None, it would hide what the model's own configuration says
        config["quantization_config"] = quantization
    elif stored in whole and stored == "CompressedTensors":
        from transformers import CompressedTensorsConfig

        config["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    elif stored in ("GPTQ", "AWQ"):
        from transformers import AwqConfig, GPTQConfig

        # By itself gptqmodel takes the fastest kernels, through which no gradient passes. The rest is the file's.
        kind: Any = AwqConfig if stored == "AWQ" else GPTQConfig
        config["quantization_config"] = kind(bits=4, backend="auto_trainable")
    try:
        with warnings.catch_warnings():
            # That the file's own configuration counts, too, is meant.
            warnings.filterwarnings("ignore", "You passed `quantization_config`")
            model: PreTrainedModel
            model, loaded = model_class(place, head).from_pretrained(
                place.path,
                dtype=dtype,
                attn_implementation="sdpa",
                use_safetensors=True,
                trust_remote_code=False,
                distributed_config=distributed,
                output_loading_info=True,
                **(device if isinstance(device, dict) else {"device_map": None if device is None else {"": device}}),
                **config,
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"model {place.uri}: it cannot be loaded: {error}") from error
    own = f"{model.base_model_prefix}." if head == "SequenceClassification" else ""  # its head may be new
    if lacking := sorted(key for key in loaded["missing_keys"] if key.startswith(own)):
        rest = f", of a base quantised by {stored} one whose layers are all quantised" if stored in PACKAGES else ""
        raise ModelError(
            f"model {place.uri}: its files have no {lacking[0]} ({len(lacking)} tensors are missing), which would be "
            f"filled at random: use a whole checkpoint{rest}"
        )
    return turned_back(model, place, str(stored)) if stored in whole else model


WHOLE_TO_TRAIN = ("CompressedTensors",)
"""Forms whose layers pass no gradient, or have no weights, while they are packed."""
WHOLE_TO_MERGE = ("CompressedTensors", "BitsAndBytes")


def is_packed(place: Place) -> bool:
    """Whether a model's weights stay quantised while adapters over them are trained."""
    return base_of(config_of(place)) not in (FULL_PRECISION, *WHOLE_TO_TRAIN)


def turned_back(model: Any, place: Place, stored: str) -> PreTrainedModel:
    """A model whose quantised weights are turned back, as a plain one."""
    import torch

    if stored == "BitsAndBytes":
        model = model.dequantize()
    else:
        from compressed_tensors.quantization import QuantizationMetadata

        for module in model.modules():  # else activations are rounded still, through which no gradient passes
            QuantizationMetadata.clear_quantization(module)
    model._weight_conversions = None  # save_pretrained would pack again what was unpacked; None: as of a model anew
    packed = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and type(m) is not torch.nn.Linear]
    if packed or any(not parameter.is_floating_point() for parameter in model.parameters()):
        raise ModelError(f"model {place.uri}: its weights cannot be turned back from {stored}: {packed[:3]}")
    return model  # type: ignore[no-any-return]


def save_model(
    model: PreTrainedModel,
    base: Place,
    dtype: torch.dtype,
    folder: Path,
    state: dict[str, torch.Tensor] | None = None,
    changes: dict[str, Any] | None = None,
) -> None:
    """Write `model` in `dtype` with the configuration, tokenizer, chat template and generation settings of `base`,
    byte by byte but for the dtype's name and `changes` of the configuration. The weights are those of `state` where
    they are not in the model itself, which else is cast.
    """
    cast: Any = model
    if state is None:
        cast.to(dtype).save_pretrained(folder)
    else:
        cast.save_pretrained(folder, state_dict={name: tensor.to(dtype) for name, tensor in state.items()})
    save_companions(base, dtype, folder, changes)


def save_companions(base: Place, dtype: torch.dtype, folder: Path, changes: dict[str, Any] | None = None) -> None:
    """Write all of a model but its weights."""
    source = Path(base.path)
    config = json.loads((source / "config.json").read_text())
    config.pop("torch_dtype", None)
    config.pop("quantization_config", None)  # what is written is quantised only where `changes` say so
    config |= {"dtype": str(dtype).removeprefix("torch."), **(changes or {})}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for pattern in COMPANIONS:
        for path in source.glob(pattern):
            target = folder / path.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, target)
