"""The life of a training, whatever the method: order of rows, checkpoints, checks of what really runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerCallback
from tunesmith.training.plan import TrainPlan

from tunesmith_trainer import group, optimizers, strategy
from tunesmith_trainer.checkpoint import PREFIX, Checkpoints, sync
from tunesmith_trainer.fencing import Fence
from tunesmith_trainer.order import Order
from tunesmith_trainer.towers import set_learning_rates

# For the type checker a Trainer; at run time the class beside it is one.
Base: Any = Trainer if TYPE_CHECKING else object


class Lifecycle(Base):
    """What every method's trainer has beside a class of transformers or TRL: our order of rows, and checkpoints that
    count only when they are whole. Comes first among the bases.
    """

    def __init__(self, plan: TrainPlan, checkpoints: Checkpoints, fence: Fence, **options: Any) -> None:
        self.plan, self.checkpoints, self.fence = plan, checkpoints, fence
        self.checkpoint_step: int | None = None
        self.stopped_early = False
        """The checkpoint that this attempt goes on from was to be the last."""
        self.step_norm = 0.0
        self.order: Order
        super().__init__(**options)

    def completed(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the artefact has beside the weights: (changes of the model's config.json, other files by name)."""
        return {}, {}

    @property
    def step_loss(self) -> float:
        """The loss, summed since the last log line: no number as soon as one step's is none."""
        return float(self._tr_loss)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: lineage is in the artefact's manifest."""

    def set_initial_training_values(self, *arguments: Any) -> tuple[Any, ...]:
        """No epoch is begun where the checkpoint gone on from is that of the last step, and only its publication is
        missing: an epoch would make one step more.
        """
        epochs, *others, most = super().set_initial_training_values(*arguments)
        over = self.stopped_early or (self.checkpoint_step or 0) >= most
        return 0 if over else epochs, *others, most

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        rows = len(train_dataset if train_dataset is not None else self.train_dataset)
        self.order = Order(rows, self.plan.training.global_batch_size, self.plan.training.seed)
        return self.order

    def create_optimizer(self, model: Any = None) -> Any:
        """LoRA+ has groups of its own, and so have parts of the model with rates of their own."""
        ratio = self.plan.tuner.lora_plus_ratio
        if self.optimizer is None and ratio != 1.0:
            self.optimizer = optimizers.loraplus(self, model or self.model, ratio)
        else:
            super().create_optimizer(model)
        set_learning_rates(self.optimizer, self.model, self.plan)
        return self.optimizer

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.step_norm = float(norm or 0.0)
        return norm

    def prediction_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> tuple[Any, None, None]:
        """The loss of rows to evaluate on, as in training."""
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.checkpoints.staging)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Nothing where DeepSpeed or FSDP2 write the weights with the optimizer."""
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint as a draft, wait until all processes have written theirs, and move it into place."""
        step, first = self.state.global_step, group.is_first()
        self.fence.check(group.first_says)
        if first:
            self.checkpoints.draft()
        group.barrier()
        try:
            super()._save_checkpoint(model, trial)
            if self.args.local_process_index == 0:  # what is on this node's side of a shared file system
                sync(self.checkpoints.staging / f"{PREFIX}{step}")
            group.barrier()
            if first:
                self.checkpoints.seal(step)
            self.fence.check(group.first_says)
            if first:
                self.checkpoints.publish(step)
        except Exception:
            if first:
                self.checkpoints.clear_own_draft()
            raise
        self.checkpoint_step = step


class Checks(TrainerCallback):
    """What can only be done once the model is wrapped."""

    def __init__(self) -> None:
        self.trainer: Any = None
        """Set once it is built."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See that what runs is what the plan says."""
        strategy.check_engine(self.trainer.model_wrapped, self.trainer.plan)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A new order."""
        order = self.trainer.order
        order.epoch = state.global_step // order.steps
