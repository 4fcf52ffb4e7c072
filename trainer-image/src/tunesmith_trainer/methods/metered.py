"""What our own trainers share: metrics and tokens in the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer

from tunesmith_trainer.lifecycle import Lifecycle

Base: Any = Trainer if TYPE_CHECKING else object


class Metered(Lifecycle, Base):
    """Means of metrics, and tokens so far, in each log line. A subclass says `loss_of(model, inputs)`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # The loss is a mean over rows; micro-batches are alike in their number.
        self.model_accepts_loss_kwargs = False
        self.metered: dict[bool, dict[str, list[torch.Tensor]]] = {True: {}, False: {}}
        """(sum, count) of each metric for each micro-batch, of the training (True) and of an evaluation (False)."""
        self.metered_tokens: list[torch.Tensor] = []
        self.tokens = 0

    def loss_of(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(loss, metrics of this process's rows: one number for each, NaN where a row has none)."""
        raise NotImplementedError

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        """The loss; its metrics are kept for the next log line."""
        loss, metrics = self.loss_of(model, inputs)
        for name, value in metrics.items():
            rows = value.detach().float()
            count = 1.0
            if not model.training:  # several processes may have the same rows
                rows = self.accelerator.gather(rows)
                count = self.rows_at_hand / len(rows)
            kept = self.metered[model.training].setdefault(name, [])
            kept.append(count * torch.stack([rows.nansum(), (~rows.isnan()).float().sum()]))
        if model.training:
            self.metered_tokens.append(inputs["attention_mask"].sum())
        return loss

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = list(self.train_dataset.column_names)

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """Add the means over the rows of all processes since the last line, or of an evaluation."""
        training = "eval_loss" not in logs
        totals = {name: torch.stack(found).sum(0) for name, found in self.metered[training].items()}
        if training and self.metered_tokens:
            tokens = torch.stack(self.metered_tokens).sum().float()
            table = self.accelerator.reduce(torch.cat([*totals.values(), tokens[None]]), "sum")
            totals = dict(zip(totals, table[:-1].view(-1, 2), strict=True))
            self.tokens += int(table[-1])
            self.metered_tokens = []
        for name, (total, count) in totals.items():
            if count:
                logs[name if training else f"eval_{name}"] = float(total / count)
        self.metered[training] = {}
        if training:
            logs["num_tokens"] = self.tokens
        super().log(logs, *arguments, **options)
