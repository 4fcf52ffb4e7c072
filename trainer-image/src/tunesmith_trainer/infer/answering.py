"""Answers of a language model: in batches, or streamed to the terminal. Of the model's own generation settings only the
tokens at which it stops are used: what is asked for decides, and a batch gives what one row alone gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tunesmith_trainer import chat
from tunesmith_trainer.errors import DataError
from tunesmith_trainer.infer.subject import Loaded, Sampling
from tunesmith_trainer.media import Medium, media_of
from tunesmith_trainer.methods.preferences import padded
from tunesmith_trainer.multimodal import processor_of
from tunesmith_trainer.rollouts import asked, coded

if TYPE_CHECKING:
    import torch

    from tunesmith_trainer.data import Row


@dataclass(frozen=True)
class Prompt:
    """What is to be answered, as the model reads it."""

    ids: list[int]
    media: list[Medium]


def prompt_of(row: Row, loaded: Loaded) -> Prompt:
    """A row's prompt: all before the assistant's last turn. Raises DataError where no room for an answer is left."""
    turns = replace(row, messages=tuple(asked(row)))
    _, ids = coded(row, loaded.tokenizer)
    if len(ids) >= loaded.context:
        raise DataError(
            f"{row.where}: its prompt has {len(ids)} tokens, but the model's context is {loaded.context}, of which an "
            "answer needs a part: shorten the row or leave it out, or take a model with a longer context"
        )
    return Prompt(ids, media_of(turns.messages, turns.parts))


def answers(prompts: Sequence[Prompt], loaded: Loaded, sampling: Sampling, streamer: Any = None) -> list[str]:
    """The answers to a batch of prompts, without the token that ends them."""
    import torch

    ends = chat.ends(loaded.tokenizer)
    batch = {name: value.to(loaded.model.device) for name, value in padded_left(prompts, loaded).items()}
    torch.manual_seed(sampling.seed)
    with torch.inference_mode():
        made = loaded.model.generate(**batch, generation_config=settings(loaded, sampling, ends), streamer=streamer)
    found = made[:, batch["input_ids"].shape[1] :].tolist()
    return [text_until(row, ends, loaded) for row in found]


def padded_left(prompts: Sequence[Prompt], loaded: Loaded) -> dict[str, torch.Tensor]:
    """The tensors of a batch, filled up at the beginning, so that all answers begin at the same place."""
    import torch

    longest, pad = max(len(one.ids) for one in prompts), padded(loaded.tokenizer)
    batch = {
        "input_ids": torch.tensor([[*[pad] * (longest - len(one.ids)), *one.ids] for one in prompts]),
        "attention_mask": torch.tensor([[0] * (longest - len(one.ids)) + [1] * len(one.ids) for one in prompts]),
    }
    multimodal = processor_of(loaded.tokenizer)
    if multimodal is None or not any(one.media for one in prompts):
        return batch
    more = multimodal.tensors_of([one.media for one in prompts])
    return {**batch, **more, **multimodal.token_types(batch["input_ids"])}


def settings(loaded: Loaded, sampling: Sampling, ends: list[int]) -> Any:
    """As transformers says it. What a GenerationConfig leaves open it takes from the model's own, so nothing is."""
    from transformers import GenerationConfig

    draws = sampling.temperature > 0
    multimodal = processor_of(loaded.tokenizer)
    unspoken: Any = multimodal and loaded.tokenizer.convert_tokens_to_ids(list(multimodal.tokens.values()))
    whole = loaded.model.get_base_model() if hasattr(loaded.model, "peft_config") else loaded.model
    whole.generation_config = GenerationConfig()
    return GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=draws,
        temperature=sampling.temperature if draws else None,
        top_p=sampling.top_p if draws else None,
        top_k=0 if draws else None,
        eos_token_id=ends,
        pad_token_id=padded(loaded.tokenizer),
        suppress_tokens=unspoken or None,
    )


def text_until(ids: Sequence[int], ends: Sequence[int], loaded: Loaded) -> str:
    """The text of an answer's tokens."""
    count = next((place for place, token in enumerate(ids) if token in ends), len(ids))
    return str(loaded.tokenizer.decode(list(ids[:count]), skip_special_tokens=True))


def stream(row: Row, loaded: Loaded, sampling: Sampling) -> str:
    """Print an answer while it is made, and return it."""
    from transformers import TextStreamer

    streamer = TextStreamer(loaded.tokenizer, skip_prompt=True, skip_special_tokens=True)  # type: ignore[arg-type]
    [answer] = answers([prompt_of(row, loaded)], loaded, sampling, streamer)
    return answer
