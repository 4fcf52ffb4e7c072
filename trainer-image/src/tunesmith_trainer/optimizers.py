"""The optimizers, by their names in transformers, and LoRA+."""

from __future__ import annotations

from typing import Any

from tunesmith.api.training import Optimizer
from tunesmith.training.plan import TrainPlan

from tunesmith_trainer.errors import ConfigError

NAMES: dict[Optimizer, str] = {
    "AdamW": "adamw_torch",
    "AdamW8bit": "adamw_8bit",
    "PagedAdamW8bit": "paged_adamw_8bit",
    "Adafactor": "adafactor",
    "GaLore": "galore_adamw",
    "APOLLO": "apollo_adamw",
}
PROJECTED = frozenset({"GaLore", "APOLLO"})


def arguments(plan: TrainPlan, cuda: bool) -> dict[str, Any]:
    """The optimizer's part of TrainingArguments."""
    asked = plan.training.optimizer
    if asked == "PagedAdamW8bit" and not cuda:
        raise ConfigError("spec.training.optimizer: PagedAdamW8bit needs a GPU, and there is none: use AdamW8bit")
    return {"optim": NAMES[asked], "optim_target_modules": "all-linear" if asked in PROJECTED else None}


def loraplus(trainer: Any, model: Any, ratio: float) -> Any:
    """The plan's optimizer with a learning rate of its own for the matrices B (arXiv 2402.12354)."""
    from peft.optimizers import create_loraplus_optimizer

    kind, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, model)
    optimizer: Any = create_loraplus_optimizer(
        model,
        kind,
        loraplus_lr_ratio=ratio,
        loraplus_weight_decay=trainer.args.weight_decay,
        loraplus_lr_embedding=trainer.args.learning_rate,
        **options,
    )
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    return optimizer
