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
        self.metered: dict[str, list[torch.Tensor]] = {}
        self.metered_tokens: list[torch.Tensor] = []
        self.measured: dict[str, Any] = {}
        """(sum, count) of each metric of the evaluation at hand."""
        self.tokens = 0

    def loss_of(self, model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """(loss, metrics of this process's rows)."""
        raise NotImplementedError

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        """The loss; its metrics are kept for the next log line."""
        loss, metrics = self.loss_of(model, inputs)
        if not model.training:
            for name, value in metrics.items():
                total = torch.stack([value.detach().float().sum(), value.new_tensor(value.numel()).float()])
                self.measured[name] = self.measured.get(name, 0) + total
            return loss
        for name, value in metrics.items():
            self.metered.setdefault(name, []).append(value.detach().float().mean())
        self.metered_tokens.append(inputs["attention_mask"].sum())
        return loss

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = list(self.train_dataset.column_names)

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """Add the means over all processes since the last line."""
        if "eval_loss" in logs:
            for name in sorted(self.measured):
                total, count = self.accelerator.reduce(self.measured[name], "sum").tolist()
                logs[f"eval_{name}"] = total / count
            self.measured = {}
            super().log(logs, *arguments, **options)
            return
        if self.metered_tokens:
            names = sorted(self.metered)
            own = [torch.stack(self.metered[name]).mean() for name in names]
            own.append(torch.stack(self.metered_tokens).sum().float())
            table = self.accelerator.gather(torch.stack([value.to(own[0].device) for value in own])[None])
            logs |= {name: float(table[:, place].mean()) for place, name in enumerate(names)}
            self.tokens += int(table[:, -1].sum())
            self.metered, self.metered_tokens = {}, []
        logs["num_tokens"] = self.tokens
        super().log(logs, *arguments, **options)
