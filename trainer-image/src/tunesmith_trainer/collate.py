"""Media into batches: for rows that stand in the dataset, and for passes over answers that were just sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tunesmith_trainer.multimodal import Multimodal, processor_of

COLUMN = "media"
Numbers = list[list[int]]


def once(examples: Sequence[dict[str, Any]]) -> Numbers:
    """One row of the batch for each example."""
    return [one.get(COLUMN) or [] for one in examples]


def twice(examples: Sequence[dict[str, Any]]) -> Numbers:
    """Better answers, then worse ones, of the same prompts."""
    return once(examples) * 2


class WithMedia:
    """A collator that adds to another's batch what its rows' media are to the model. `order` says which media the rows
    of the batch have, one after the other.
    """

    def __init__(
        self,
        inner: Callable[[list[dict[str, Any]]], dict[str, Any]],
        multimodal: Multimodal,
        order: Callable[[Sequence[dict[str, Any]]], Numbers] = once,
    ) -> None:
        self.inner, self.multimodal, self.order = inner, multimodal, order

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch."""
        numbers = self.order(examples)
        batch = self.inner([{name: v for name, v in one.items() if name != COLUMN} for one in examples])
        batch.update(self.multimodal.tensors(numbers))
        for prefix in ("", "KL_"):  # KTO's other answers
            if any(numbers) and f"{prefix}input_ids" in batch:
                types = self.multimodal.token_types(batch[f"{prefix}input_ids"])
                batch.update({prefix + name: value for name, value in types.items()})
        return batch


def adding(
    tokenizer: Any,
    inner: Callable[[list[dict[str, Any]]], dict[str, Any]],
    order: Callable[[Sequence[dict[str, Any]]], Numbers] = once,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(arguments, options) of a trainer whose rows may have media: nothing new for a model that reads text only."""
    multimodal = processor_of(tokenizer)
    if multimodal is None:
        return {}, {}
    return {"remove_unused_columns": False}, {"data_collator": WithMedia(inner, multimodal, order)}


class Injection:
    """Gives the passes of models the media of rows that are said beforehand, whoever makes the pass."""

    def __init__(self, multimodal: Multimodal, numbers: Numbers) -> None:
        self.multimodal, self.numbers = multimodal, numbers
        self.rows: list[int] = []
        self.at = 0

    def watch(self, model: torch.nn.Module) -> None:
        """Add media to the passes of a model's backbone."""
        base: Any = model.get_base_model() if hasattr(model, "peft_config") else model  # type: ignore[operator]
        base.base_model.register_forward_pre_hook(self.inject, with_kwargs=True)

    @contextmanager
    def of(self, rows: Sequence[int]) -> Iterator[None]:
        """Passes within are over these rows, in micro-batches of any size, as often as it takes."""
        self.rows, self.at = list(rows), 0
        try:
            yield
        finally:
            self.rows = []

    def fields(self, rows: Sequence[int], input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the model is given beside these tokens of rows."""
        found = self.multimodal.tensors([self.numbers[row] for row in rows])
        if found:
            found |= self.multimodal.token_types(input_ids)
        return {name: value.to(input_ids.device) for name, value in found.items() if isinstance(value, torch.Tensor)}

    def inject(self, module: Any, arguments: Any, options: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """The hook."""
        if not self.rows:
            return None
        ids = options["input_ids"] if "input_ids" in options else arguments[0]
        rows = [self.rows[(self.at + place) % len(self.rows)] for place in range(len(ids))]
        self.at += len(ids)
        return arguments, {**options, **self.fields(rows, ids)}
