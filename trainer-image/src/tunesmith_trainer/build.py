"""From a plan to a trainer that is about to run: settings, model, tuner, strategy, checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer
from tunesmith.training.plan import TrainPlan

from tunesmith_trainer import group, strategy, tuner
from tunesmith_trainer.checkpoint import PREFIX, Checkpoints, sync
from tunesmith_trainer.errors import ConfigError
from tunesmith_trainer.fencing import Fence
from tunesmith_trainer.model import compute_dtype, load_model
from tunesmith_trainer.order import Order

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEDULERS = {"Cosine": "cosine", "Linear": "linear", "Constant": "constant_with_warmup"}


def settings(plan: TrainPlan, bf16: bool, cuda: bool) -> SFTConfig:
    """SFTConfig of a plan. Whatever TRL and transformers would choose by themselves and the plan speaks of is set."""
    training = plan.training
    # ZeRO-3 with adapters: its hooks on parameters need the reentrant form.
    reentrant = plan.distribution.strategy == "ZeRO3" and plan.tuner.type != "Full"
    return SFTConfig(
        output_dir=plan.checkpoint.path,
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=training.micro_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type=SCHEDULERS[training.scheduler],
        warmup_steps=training.warmup_ratio,  # below 1 it is a part of all steps
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        gradient_checkpointing=training.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant} if training.gradient_checkpointing else None,
        bf16=bf16,
        fp16=False,
        seed=training.seed,
        data_seed=training.seed,
        max_length=training.max_length,
        packing=training.packing,
        packing_strategy="bfd",
        dataset_kwargs=None if training.packing else {"skip_prepare_dataset": True},
        shuffle_dataset=False,  # the sampler shuffles
        logging_strategy="steps",
        logging_steps=training.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="no",  # stopping.Pace says when
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        optim="adamw_torch",
        average_tokens_across_devices=True,
        dataloader_num_workers=2 if cuda else 0,
        dataloader_pin_memory=cuda,
        **strategy.arguments(plan, cuda),
    )


class Trainer(SFTTrainer):
    """TRL's, with our order of rows, and checkpoints that count only when they are whole."""

    def __init__(self, plan: TrainPlan, checkpoints: Checkpoints, fence: Fence, **options: Any) -> None:
        self.plan, self.checkpoints, self.fence = plan, checkpoints, fence
        self.checkpoint_step: int | None = None
        self.step_norm = 0.0
        self.order: Order
        super().__init__(**options)

    @property
    def step_loss(self) -> float:
        """The loss, summed since the last log line: no number as soon as one step's is none."""
        return float(self._tr_loss)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: lineage is in the artefact's manifest."""

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        rows = len(train_dataset if train_dataset is not None else self.train_dataset)
        self.order = Order(rows, self.plan.training.global_batch_size, self.plan.training.seed)
        return self.order

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.step_norm = float(norm or 0.0)
        return norm

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.checkpoints.staging)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Nothing where DeepSpeed writes the weights with its optimizer."""
        if not self.is_deepspeed_enabled:
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


def build(
    plan: TrainPlan, tokenizer: Any, dataset: Any, checkpoints: Checkpoints, fence: Fence, callbacks: Sequence[Any] = ()
) -> Trainer:
    """The trainer with the plan's model and tuner, checked to do what the plan says. Joins the processes."""
    cuda = torch.cuda.is_available()
    if cuda and torch.cuda.device_count() > plan.processes_per_node == 1:
        raise ConfigError(
            f"spec.processesPerNode: 1, but {torch.cuda.device_count()} GPUs are there: use one process for each"
        )
    strategy.join(plan, cuda)
    compute = compute_dtype(plan.training.dtype)
    # Before the model: ZeRO-3 splits it while it is loaded.
    args = settings(plan, compute == torch.bfloat16, cuda)
    if args.world_size != plan.world_size:
        raise ConfigError(
            f"{args.world_size} processes train, but the plan says {plan.nodes} x {plan.processes_per_node}"
        )
    zero = strategy.STAGES[plan.distribution.strategy]
    set_seed(plan.training.seed)
    # Full: float32 weights (under bfloat16 autocast where that is the compute dtype), so that small updates count.
    # DeepSpeed keeps float32 ones in its optimizer.
    model: Any = load_model(
        plan.model,
        torch.float32 if plan.tuner.type == "Full" and not zero else compute,
        quantization=tuner.quantization_config(plan.tuner, compute),
        device=(args.local_process_index if cuda else "cpu") if plan.tuner.type == "QLoRA" else None,
    )
    model.config.use_cache = False
    if plan.tuner.type != "Full":
        set_seed(plan.training.seed)
        model = tuner.add_adapter(model, plan.tuner, float32=not zero)
    checks = Checks()
    trainer = Trainer(
        plan,
        checkpoints,
        fence,
        model=model,
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[checks, *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    for callback in (checks, *callbacks):
        callback.trainer = trainer
    if plan.tuner.type != "Full":
        # TRL casts adapters over a quantised base to bfloat16, whose steps of 1/256 swallow small updates.
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(compute if zero else torch.float32)
    tuner.check_tuner(model, plan.tuner)
    return trainer
