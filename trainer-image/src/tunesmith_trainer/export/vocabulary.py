"""The tokenizer of a GGUF file: tokens, what they are for, merges, and the name of the way text is split."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith.training.plan import Place

from tunesmith_trainer.chat import turn_ends
from tunesmith_trainer.errors import ConfigError
from tunesmith_trainer.model import ends_of

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerFast

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
SPLITS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (_LLAMA3, "ByteLevel"): "llama-bpe",
    (_QWEN2, "ByteLevel"): "qwen2",
}
"""Steps of tokenizer.json's pre_tokenizer -> llama.cpp's name (`tokenizer.ggml.pre`)."""


def add_vocabulary(writer: GGUFWriter, source: Place, tokenizer: PreTrainedTokenizerFast, size: int) -> None:
    """Write the tokenizer at `source`, which the model has `size` embeddings for."""
    from gguf import SpecialVocab, TokenType

    folder = Path(source.path)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_tokenizer_model("gpt2")  # byte-level BPE
    writer.add_tokenizer_pre(split_name(source, content))
    if len(tokenizer) > size:
        raise ConfigError(
            f"spec.quantization.method GGUF: {source.uri} has {len(tokenizer)} tokens and {size} embeddings"
        )
    tokens = {index: (token, TokenType.NORMAL) for token, index in tokenizer.get_vocab().items()}
    for index, added in tokenizer.added_tokens_decoder.items():
        tokens[index] = (added.content, TokenType.CONTROL if added.special else TokenType.USER_DEFINED)
    every = [tokens.get(index, (f"[PAD{index}]", TokenType.UNUSED)) for index in range(size)]
    writer.add_token_list([token for token, _ in every])
    writer.add_token_types([kind for _, kind in every])

    vocabulary = SpecialVocab(folder, load_merges=True, n_vocab=size)
    # By what the tokenizer does, not by what its files seem to say.
    ids = {kind: getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "unk", "pad")}
    vocabulary.special_token_ids = {kind: index for kind, index in ids.items() if index is not None}
    made = tokenizer("x")["input_ids"]
    vocabulary.add_special_token = {"bos": made[0] == ids["bos"], "eos": made[-1] == ids["eos"]}
    vocabulary.chat_template = tokenizer.chat_template
    vocabulary.add_to_gguf(writer, quiet=True)
    turns = tokenizer.convert_tokens_to_ids(turn_ends(tokenizer))
    if ends := [end for end in (*ends_of(source), *turns) if end != ids["eos"]]:
        writer.add_eot_token_id(ends[-1])


def split_name(source: Place, content: dict[str, Any]) -> str:
    """llama.cpp's name of the way a tokenizer splits text. Raises ConfigError for one that is not byte-level BPE, or
    splits in another way.
    """
    steps = content.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    form = tuple(step.get("pattern", {}).get("Regex") or step.get("type") for step in steps)
    name = SPLITS.get(form)
    model = content.get("model", {})
    changes = (content.get("normalizer") or {}).get("type") not in {None, "NFC"}  # llama.cpp leaves NFC out, too
    if name is None or model.get("type") != "BPE" or model.get("byte_fallback") or changes:
        raise ConfigError(
            f"spec.quantization.method GGUF: the tokenizer of {source.uri} ({model.get('type')}, which splits text by "
            f"{list(form)}) is not known; written are byte-level BPE as of GPT-2, SmolLM, Llama 3, Qwen2 and Qwen3. "
            "llama.cpp's own convert_hf_to_gguf.py takes the unquantised artefact"
        )
    return name
