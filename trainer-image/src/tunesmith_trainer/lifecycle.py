"""The life of a training, whatever the method: order of rows, checkpoints, checks of what really runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer import SCHEDULER_NAME
from tunesmith.training.plan import TrainPlan

from tunesmith_trainer import adapters, group, optimizers, strategy, tensor
from tunesmith_trainer.checkpoint import PREFIX, Checkpoints, sync
from tunesmith_trainer.errors import ConfigError
from tunesmith_trainer.fencing import Fence
from tunesmith_trainer.means import Means, Metrics
from tunesmith_trainer.order import Order, Rounds
from tunesmith_trainer.rowstream import MARK, Mark, Marked, RowStream
from tunesmith_trainer.sequence import Part
from tunesmith_trainer.towers import set_learning_rates

# For the type checker a Trainer; at run time the class beside it is one.
Base: Any = Trainer if TYPE_CHECKING else object


STREAM = "stream.json"
"""In a checkpoint, where streamed rows stood."""


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
        self.marks: dict[int, Mark] = {}
        """Of streamed rows, where the lanes stand that this process has learned from."""
        self.order: Order
        self.rounds: Rounds
        self.evaluated: list[torch.Tensor] = []
        """Of each batch of an evaluation so far, this process's part of (sum of the losses, of how many)."""
        self.means = {"train": Means(), "eval": Means()}
        self.lengths: Sequence[int] | None = None
        """Of the rows, where these may be put together by it."""
        super().__init__(**options)
        # At the end of an epoch it takes the numbers of processes for rows that fill up the last batch, and drops them.
        self.accelerator.gather_for_metrics = self.accelerator.gather

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
        training, copies = self.plan.training, self.plan.distribution.sequence_parallel
        shuffled = training.streaming == "Disabled"
        batch, micro = training.global_batch_size, training.micro_batch_size
        self.order = Order(rows, batch, training.seed, micro, copies, shuffled, self.lengths)
        return self.order

    def get_train_dataloader(self) -> Any:
        """Parts of rows where processes share them; with marks where rows are streamed."""
        whole, size = self.data_collator, self.plan.distribution.sequence_parallel
        if size > 1:
            self.data_collator = Part(self.data_collator, size, self.args.process_index)
        if isinstance(self.train_dataset, RowStream):
            self.data_collator = Marked(self.data_collator)
            self.train_dataset.close()
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = whole

    def training_step(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        """A micro-batch; where streamed rows stood is remembered for a checkpoint."""
        if isinstance(self.train_dataset, RowStream):
            self.marks |= {mark.lane: mark for mark in inputs.pop(MARK)}
        return super().training_step(model, inputs, *arguments, **options)

    def create_optimizer(self, model: Any = None) -> Any:
        """LoRA+ has groups of its own, and so have parts of the model with rates of their own."""
        ratio = self.plan.tuner.lora_plus_ratio
        if self.optimizer is None and ratio != 1.0:
            self.optimizer = optimizers.loraplus(self, model or self.model, ratio)
        else:
            super().create_optimizer(model)
        set_learning_rates(self.optimizer, self.model, self.plan)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Warm-up takes whole steps, rounded down: its first one has no learning rate, and a short training could be
        that step alone.
        """
        self.args.warmup_steps = int(num_training_steps * self.plan.training.warmup_ratio)
        return super().create_scheduler(num_training_steps, optimizer)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.step_norm = float(norm or 0.0)
        return norm

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Rows to evaluate on as `Rounds` has them: accelerate would count some twice where they do not come out even.
        Processes that share each weight read the same rows.
        """
        loader, args = super().get_eval_dataloader(eval_dataset), self.args
        copies = self.plan.distribution.tensor_parallel
        self.rounds = Rounds(
            len(loader.dataset),
            args.per_device_eval_batch_size,
            args.process_index // copies,
            args.world_size // copies,
        )
        return DataLoader(
            loader.dataset, batch_sampler=self.rounds, collate_fn=loader.collate_fn, num_workers=loader.num_workers
        )

    def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
        """The mean of the loss over rows, or what it is the mean of."""
        self.evaluated = []
        found = super().evaluation_loop(*arguments, **options)
        total, count = self.accelerator.reduce(torch.stack(self.evaluated).sum(0), "sum")
        found.metrics["eval_loss"] = float(total / count)
        return found

    @property
    def rows_at_hand(self) -> int:
        """Rows of all processes in the batch that is evaluated on."""
        return self.rounds.rows[len(self.evaluated)]

    def prediction_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> tuple[Any, None, None]:
        """The loss of rows to evaluate on, as in training."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs).detach()
        rows = loss.new_tensor(self.rows_at_hand / self.args.world_size, dtype=torch.float64)
        count = self.counts(inputs).get("loss", rows)
        self.evaluated.append(torch.stack([loss * count, count]))
        return loss, None, None

    def compute_loss(self, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        """The loss; of how many TRL's metrics are means is kept for the next log line."""
        loss = super().compute_loss(model, inputs, *arguments, **options)
        rows = 1.0 if self.model.training else float(self.rows_at_hand)  # a step's micro-batches have as many
        self.means[self.mode].note(self._metrics[self.mode], self.counts(inputs), rows)
        return loss

    @property
    def mode(self) -> str:
        """Of a pass, as TRL's metrics name it."""
        return "train" if self.model.training else "eval"

    def counts(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Of how many tokens or answers of this process a metric, or `loss` in an evaluation, is the mean; by name,
        where that is not its rows.
        """
        found = self.counted(inputs)
        copies = 1 if self.model.training else self.rounds.copies[len(self.evaluated)]
        return {name: count.double() / copies for name, count in found.items()}

    def counted(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The same where no other process has the same rows. `inputs` are those of the micro-batch at hand."""
        return {}

    def settle(self, metrics: Metrics) -> None:
        """Leave of each of TRL's metrics the mean that is logged."""
        self.means[self.mode].settle(metrics, lambda counts: self.accelerator.reduce(counts, "sum"))

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """Means that do not depend on micro-batches."""
        if hasattr(self, "_metrics"):
            self.settle(self._metrics[self.mode])
        super().log(logs, *arguments, **options)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.checkpoints.staging)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Nothing where the weights are written with the optimizer."""
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled or self.shares_tensors):
            super().save_model(output_dir, _internal_call)
            if output_dir and group.is_first():
                adapters.save(self.model, Path(output_dir))

    @property
    def shares_tensors(self) -> bool:
        """Whether processes share each weight."""
        return self.plan.distribution.tensor_parallel > 1

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.shares_tensors:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        tensor.save(self, output_dir)
        if group.is_first():
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not (self.shares_tensors or adapters.load(self.model, Path(resume_from_checkpoint))):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not adapters.load(self.model, Path(self.state.best_model_checkpoint)):
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.shares_tensors:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif checkpoint is not None:
            tensor.load(self, checkpoint)
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def go_on(self, checkpoint: Path) -> None:
        """Streamed rows go on where they stood at a checkpoint. Raises ConfigError where none were streamed."""
        if not isinstance(self.train_dataset, RowStream):
            return
        if not (checkpoint / STREAM).is_file():
            raise ConfigError(
                f"spec.training.streaming: Enabled, but {checkpoint.name} is of a run that did not stream: use Disabled"
            )
        self.train_dataset.go_on(json.loads((checkpoint / STREAM).read_text()))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint as a draft, wait until all processes have written theirs, and move it into place."""
        step, first = self.state.global_step, group.is_first()
        self.fence.check(group.first_says)
        if first:
            self.checkpoints.draft()
        group.barrier()
        try:
            super()._save_checkpoint(model, trial)
            if isinstance(self.train_dataset, RowStream):
                marks = [mark for own in group.all_say(list(self.marks.values())) for mark in own]
                if first:
                    self.checkpoints.write(step, STREAM, json.dumps(self.train_dataset.state(marks)))
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
