"""GGUF: one file for llama.cpp, Ollama and LM Studio, with the tokenizer and the chat template in it.

The container, the tensors' names, the rounding and the special tokens are the `gguf` package's, which is llama.cpp's
own. Here is what llama.cpp's converter does beyond it (github.com/ggml-org/llama.cpp, convert_hf_to_gguf.py): which
keys of a configuration say what, how Llama's queries and keys are ordered, and which splitting of text a tokenizer's
name stands for. Tensors are written one after the other: the largest, in float32, is the most that is held.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.training.plan import Place, QuantizationPlan

from tunesmith_trainer import comparison, streaming
from tunesmith_trainer.errors import CheckFailed, ConfigError
from tunesmith_trainer.export import ollama
from tunesmith_trainer.export.vocabulary import add_vocabulary
from tunesmith_trainer.model import load_tokenizer

if TYPE_CHECKING:
    import numpy as np
    import torch
    from gguf import GGMLQuantizationType, GGUFWriter
    from transformers import PreTrainedTokenizerFast

FILE = "model.gguf"
ARCHITECTURES = {"llama": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
"""model_type -> MODEL_ARCH of the package. Others need conversions of their own, which were not compared."""
LARGEST_F16 = 65504


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as it will lie in the file."""

    name: str
    source: str
    """Name in the model's files."""
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    heads: int | None
    """Of Llama's queries and keys, whose rows are ordered anew."""


def write(source: Place, plan: QuantizationPlan, folder: Path) -> None:
    """Write the model at `source` as model.gguf, and a Modelfile of Ollama, into the folder."""
    from gguf import GGUFWriter

    weights, model = streaming.Weights(Path(source.path)), streaming.skeleton(source)
    tensors = list(layout(source, model, weights, plan))
    tokenizer = load_tokenizer(source)
    writer = GGUFWriter(folder / FILE, ARCHITECTURES[model.config.model_type].lower())
    add_configuration(writer, model.config, source, plan)
    add_vocabulary(writer, source, tokenizer, model.config.vocab_size)
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, *byte_size(tensor), raw_dtype=tensor.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(stored(tensor, weights.get(tensor.source)))
    writer.close()
    (folder / ollama.FILE).write_text(ollama.modelfile(FILE, tokenizer))
    for path in Path(source.path).glob("LICENSE*"):
        shutil.copyfile(path, folder / path.name)


def layout(source: Place, model: Any, weights: streaming.Weights, plan: QuantizationPlan) -> Iterator[Stored]:
    """What becomes of each weight. Matrices get the type that is asked for; norms and biases stay in float32; the
    embeddings and the output head get 8 bits where the others get fewer, and rows that are no multiple of a block
    get F16: as llama.cpp does.
    """
    import gguf

    config = model.config
    check(source, config)
    names = streaming.stored_names(model, weights)
    if names is None:
        raise ConfigError(
            f"spec.quantization: {source.uri} has files with other weights than a {config.model_type}'s; GGUF is "
            "written from a model as transformers saves it"
        )
    known = gguf.get_tensor_name_map(
        getattr(gguf.MODEL_ARCH, ARCHITECTURES[config.model_type]), config.num_hidden_layers
    )
    asked = gguf.GGMLQuantizationType[plan.gguf_type or "Q8_0"]
    fewer = gguf.GGML_QUANT_SIZES[asked][0] > 1
    for parameter, tensor in model.named_parameters():  # a tied head is not named a second time
        name = known.get_name(parameter, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ConfigError(f"spec.quantization: {source.uri}: GGUF has no place for {parameter} of a Llama or Qwen")
        kind = asked
        if tensor.ndim == 1:
            kind = gguf.GGMLQuantizationType.F32
        elif tensor.shape[-1] % gguf.GGML_QUANT_SIZES[asked][0]:
            kind = gguf.GGMLQuantizationType.F16
        elif fewer and name in {"token_embd.weight", "output.weight"}:
            kind = gguf.GGMLQuantizationType.Q8_0
        yield Stored(name, names[parameter], tuple(tensor.shape), kind, heads_of(parameter, config))


def check(source: Place, config: Any) -> None:
    """Refuse what would be written wrongly."""
    rope = config.rope_parameters or {} if config.model_type in ARCHITECTURES else {}
    found = {
        f"model_type {config.model_type}": config.model_type not in ARCHITECTURES,
        f"rope_type {rope.get('rope_type')}": rope.get("rope_type", "default") != "default",
        "sliding windows": bool(getattr(config, "use_sliding_window", False)),
    }
    if wrong := [what for what, there in found.items() if there]:
        raise ConfigError(
            f"spec.quantization.method GGUF: {source.uri} has {' and '.join(wrong)}; written are "
            f"{', '.join(ARCHITECTURES)} (SmolLM2 is a llama) without scaled positions and sliding windows. "
            "llama.cpp's own convert_hf_to_gguf.py takes the unquantised artefact"
        )


def heads_of(parameter: str, config: Any) -> int | None:
    """The number of heads among which a weight's rows are ordered anew: llama.cpp turns neighbouring numbers of Llama's
    heads, transformers those that are half a head apart.
    """
    if config.model_type != "llama":
        return None
    return {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(parameter.split(".")[-2])


def byte_size(tensor: Stored) -> tuple[np.dtype[Any], int]:
    """The numpy type that is written, and bytes in all."""
    import gguf
    import numpy as np

    per_block, size = gguf.GGML_QUANT_SIZES[tensor.type]
    # The writer takes the shape of anything but uint8 as it is.
    return np.dtype(np.float32), int(np.prod(tensor.shape)) // per_block * size


def stored(tensor: Stored, weight: torch.Tensor) -> np.ndarray[Any, Any]:
    """The bytes of a weight."""
    import gguf

    values = weight.float()
    if tensor.heads:  # (head, half, number, ...) -> (head, number, half, ...)
        values = values.unflatten(0, (tensor.heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)
    if tensor.type == gguf.GGMLQuantizationType.F16 and not values.abs().max() <= LARGEST_F16:
        raise ConfigError(f"spec.quantization.ggufType: {tensor.source} has values beyond F16's; choose BF16 or Q8_0")
    made: np.ndarray[Any, Any] = gguf.quantize(values.contiguous().numpy(), tensor.type)
    return made


def add_configuration(writer: GGUFWriter, config: Any, source: Place, plan: QuantizationPlan) -> None:
    """What the engine must know of the architecture."""
    import gguf

    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(Path(source.uri.split(",")[0]).name)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{plan.gguf_type}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def load(folder: Path) -> tuple[Any, PreTrainedTokenizerFast]:
    """What was written, as transformers' own reader makes it of the file alone: the model in float32, and the
    tokenizer.
    """
    import torch
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    config = AutoConfig.from_pretrained(folder, gguf_file=FILE)
    # For Qwen3 the reader takes its own default, whatever the file says.
    head: Any = GGUFReader(folder / FILE).get_field(f"{config.model_type}.attention.key_length")
    config.head_dim = head.contents()
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, config=config, dtype=torch.float32)
    return model, tokenizer


def logits(folder: Path, tokenizer: PreTrainedTokenizerFast) -> list[torch.Tensor]:
    """The logits of what was written, whose own tokenizer must make the same tokens of the prompts and of a
    conversation.
    """
    model, own = load(folder)
    texts = [*comparison.PROMPTS, *conversation(tokenizer)]
    for text in texts:
        wanted, found = (one(text, add_special_tokens=False)["input_ids"] for one in (tokenizer, own))
        if wanted != found:
            raise CheckFailed(
                f"the tokenizer in {FILE} makes {found[:20]} of {text[:60]!r}, the model's own {wanted[:20]}: its "
                "form is not known well enough; use another method"
            )
    return comparison.logits(model, tokenizer)


def conversation(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """A conversation in the model's own form, if it has one."""
    if not tokenizer.chat_template:
        return []
    messages = [{"role": "user", "content": "Hello, 1234!"}, {"role": "assistant", "content": "Hi.\n\nYou're 5?"}]
    return [str(tokenizer.apply_chat_template(messages, tokenize=False))]
