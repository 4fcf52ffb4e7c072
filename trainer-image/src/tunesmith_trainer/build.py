"""From a plan to a trainer that is about to run: settings, model, tuner, strategy, checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, TrainingArguments, set_seed
from tunesmith.training.plan import TrainPlan

from tunesmith_trainer import adapters, artifact, group, layers, optimizers, sequence, strategy, towers, tuner
from tunesmith_trainer.checkpoint import Checkpoints
from tunesmith_trainer.drawn import WORKERS
from tunesmith_trainer.errors import ConfigError
from tunesmith_trainer.fencing import Fence
from tunesmith_trainer.lifecycle import Checks, Lifecycle
from tunesmith_trainer.methods import Prepared, recipe
from tunesmith_trainer.model import compute_dtype, is_packed

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEDULERS = {"Cosine": "cosine", "Linear": "linear", "Constant": "constant_with_warmup"}


def settings(plan: TrainPlan, kind: type[TrainingArguments], bf16: bool, cuda: bool, **own: Any) -> TrainingArguments:
    """The arguments of a plan, with the method's own. Whatever TRL and transformers would choose by themselves and the
    plan speaks of is set.
    """
    training = plan.training
    # ZeRO-3 with adapters: its hooks on parameters need the reentrant form.
    reentrant = plan.distribution.strategy == "ZeRO3" and plan.tuner.type != "Full"
    # FSDP2 computes activations anew by itself, once the weights are gathered.
    checkpointing = training.gradient_checkpointing and plan.distribution.strategy != "FSDP2"
    workers = WORKERS if cuda or training.tokenization == "Lazy" else 0
    if training.streaming == "Enabled":
        workers = 1  # several would each read all
    return kind(
        output_dir=plan.checkpoint.path,
        num_train_epochs=training.epochs,
        max_steps=training.max_steps or -1,
        per_device_train_batch_size=training.micro_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        lr_scheduler_type=SCHEDULERS[training.scheduler],
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant} if checkpointing else None,
        bf16=bf16,
        fp16=False,
        seed=training.seed,
        data_seed=training.seed,
        logging_strategy="steps",
        logging_steps=training.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="no",  # stopping.Pace says when
        eval_strategy="no",  # evaluation.Evaluation says when
        per_device_eval_batch_size=training.micro_batch_size,
        prediction_loss_only=True,
        report_to="none",  # trackers.py says to whom
        run_name=plan.job.name,
        disable_tqdm=True,
        average_tokens_across_devices=True,
        dataloader_num_workers=workers,
        dataloader_multiprocessing_context="fork" if workers else None,  # rows are mapped, not copied
        dataloader_pin_memory=cuda,
        **optimizers.arguments(plan, cuda),
        **strategy.arguments(plan, cuda),
        **own,
    )


def build(
    plan: TrainPlan, prepared: Prepared, checkpoints: Checkpoints, fence: Fence, callbacks: Sequence[Any] = ()
) -> Lifecycle:
    """The trainer with the plan's model and tuner, checked to do what the plan says. Joins the processes."""
    cuda = torch.cuda.is_available()
    if plan.distribution.strategy == "DeviceMap":
        layers.begin(plan, torch.cuda.device_count())
    elif cuda and torch.cuda.device_count() > plan.processes_per_node == 1:
        raise ConfigError(
            f"spec.processesPerNode: 1, but {torch.cuda.device_count()} GPUs are there: use one process for each"
        )
    strategy.join(plan, cuda)
    compute = compute_dtype(plan.training.dtype)
    # Before the model: ZeRO-3 splits it while it is loaded.
    method = recipe(plan.method.type)
    args = settings(plan, method.CONFIG, compute == torch.bfloat16, cuda, **prepared.arguments)
    if args.world_size != plan.world_size:
        raise ConfigError(
            f"{args.world_size} processes train, but the plan says {plan.nodes} x {plan.processes_per_node}"
        )
    zero = strategy.STAGES[plan.distribution.strategy]
    set_seed(plan.training.seed)
    device: Any = None
    if plan.distribution.strategy == "DeviceMap":
        device = layers.options(plan, {gpu: torch.cuda.mem_get_info(gpu)[0] for gpu in layers.own(plan)})
    elif (plan.tuner.type == "QLoRA" or is_packed(plan.model)) and zero < 3:
        device = args.local_process_index if cuda else "cpu"
    # Full: float32 weights (under bfloat16 autocast where that is the compute dtype), so that small updates count.
    # DeepSpeed keeps float32 ones in its optimizer.
    model: Any = method.load(
        plan,
        torch.float32 if plan.tuner.type == "Full" and not zero else compute,
        quantization=tuner.quantization_config(plan.tuner, compute),
        device=device,
    )
    model.config.use_cache = False
    if is_packed(plan.model):
        tuner.check_gradients(model, plan.model.uri)
    if plan.distribution.strategy == "DeviceMap":
        layers.check(model, plan)
    if towers.has_towers(model):
        # Rows without images pass no tower.
        args.ddp_find_unused_parameters = not (plan.tuner.freeze.towers and plan.tuner.freeze.aligner)
    if plan.tuner.type != "Full":
        set_seed(plan.training.seed)
        model = tuner.add_adapter(model, plan.tuner, not zero, method.TASK)
        if plan.tuner.initialization == "PiSSA" and group.is_first():
            tuner.keep_initial(model, artifact.initial_adapter(plan))
    elif plan.tuner.partial:
        tuner.freeze(model, plan.tuner)
    if plan.tuner.type == "Full":
        towers.freeze_parts(model, plan.tuner.freeze)
    if plan.tuner.peft and plan.tuner.peft.type == "AdaLoRA":
        callbacks = [adapters.Allocation(model), *callbacks]
    checks = Checks()
    trainer: Lifecycle = method.TRAINER(
        plan,
        checkpoints,
        fence,
        model=model,
        args=args,
        train_dataset=prepared.dataset,
        eval_dataset=prepared.validation.dataset if prepared.validation else None,
        callbacks=[checks, *callbacks],
        **prepared.options,
    )
    trainer.lengths = prepared.lengths
    trainer.remove_callback(PrinterCallback)
    for callback in (checks, *callbacks):
        callback.trainer = trainer
    if plan.tuner.type != "Full":
        # TRL casts adapters over a quantised base to bfloat16, whose steps of 1/256 swallow small updates.
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(compute if zero else torch.float32)
    tuner.check_tuner(model, plan.tuner)
    if plan.distribution.sequence_parallel > 1:
        sequence.begin(model, plan)
    if plan.distribution.tensor_parallel > 1:
        model.config.distributed_config = None  # all would be waited for where rank 0 alone saves
    return trainer
