"""Training: SFT and PreTraining by trl.SFTTrainer, over any tuner, in any number of processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.training.plan import TrainPlan
from tunesmith.training.report import Ending

from tunesmith_trainer.data import SourceFile, read_datasets
from tunesmith_trainer.errors import ConfigError, Interrupted
from tunesmith_trainer.model import check_files
from tunesmith_trainer.server import PORT

if TYPE_CHECKING:
    from trl import SFTConfig, SFTTrainer

SCHEDULERS = {"Cosine": "cosine", "Linear": "linear", "Constant": "constant_with_warmup"}


def train(plan: TrainPlan) -> Ending:
    """Train as `plan` says and publish the artefact. Cheap checks first: torch is loaded after them."""
    check_world(plan)
    check_files(plan.model)
    rows, sources = read_datasets(plan.datasets, plan.method.type == "PreTraining", plan.training.seed)

    from datasets import Dataset
    from pyarrow import table

    from tunesmith_trainer.checkpoint import StopOnSigterm, drop_broken, is_first_process, newest
    from tunesmith_trainer.masks import columns, tokenize
    from tunesmith_trainer.model import load_tokenizer
    from tunesmith_trainer.progress import Reporter

    run, first = Path(plan.output.run), is_first_process()
    tokenizer = load_tokenizer(plan.model)
    tokens = tokenize(rows, tokenizer, plan.method.loss_on, plan.training.max_length)
    if first:
        run.mkdir(parents=True, exist_ok=True)
        (run / "plan.json").write_text(plan.model_dump_json(by_alias=True, indent=2) + "\n")
        print(
            f"{len(tokens.input_ids)} rows, {sum(map(len, tokens.input_ids))} tokens; {tokens.cut} cut to maxLength, "
            f"{tokens.dropped} left out as nothing to learn remained"
        )
    resume = newest(run)
    if first:
        drop_broken(run)
        if resume:
            print(f"resuming from {resume.name}")
    stop = StopOnSigterm()
    reporter = Reporter(run / "logging.jsonl", PORT)
    trainer = build(plan, tokenizer, Dataset(table(columns(tokens))), [stop, reporter])
    try:
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        if stop.stopped:
            raise Interrupted(f"stopped by SIGTERM at step {trainer.state.global_step}, after a checkpoint of it")
        ending = finish(plan, trainer, sources)
    finally:
        reporter.close()
    return ending


def check_world(plan: TrainPlan) -> None:
    """See that as many processes run as the plan says, by torchrun's environment."""
    world, wanted = int(os.environ.get("WORLD_SIZE", "1")), plan.nodes * plan.processes_per_node
    if world != wanted:
        raise ConfigError(
            f"{world} process(es) run, but the plan says {plan.nodes} node(s) x {plan.processes_per_node} process(es): "
            f"start this by torchrun with --nnodes {plan.nodes} --nproc-per-node {plan.processes_per_node}"
        )


def settings(plan: TrainPlan, bf16: bool, cuda: bool) -> SFTConfig:
    """SFTConfig of a plan. Whatever TRL and transformers would choose by themselves and the plan speaks of is set."""
    from trl import SFTConfig

    training = plan.training
    return SFTConfig(
        output_dir=plan.output.run,
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
        gradient_checkpointing_kwargs={"use_reentrant": False} if training.gradient_checkpointing else None,
        bf16=bf16,
        fp16=False,
        use_cpu=not cuda,
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
        save_strategy="steps",
        save_steps=plan.checkpoint.every_steps or 500,
        save_total_limit=plan.checkpoint.keep,
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        optim="adamw_torch",
        average_tokens_across_devices=True,
        dataloader_num_workers=2 if cuda else 0,
        dataloader_pin_memory=cuda,
        ddp_backend=("nccl" if cuda else "gloo") if plan.nodes * plan.processes_per_node > 1 else None,
        ddp_find_unused_parameters=False,
    )


def build(plan: TrainPlan, tokenizer: Any, dataset: Any, callbacks: list[Any]) -> SFTTrainer:
    """The trainer with the plan's model and tuner, checked to do what the plan says."""
    import torch
    from torch.nn.parallel import DistributedDataParallel
    from transformers import PrinterCallback, TrainerCallback, set_seed
    from trl import SFTTrainer

    from tunesmith_trainer import tuner
    from tunesmith_trainer.model import compute_dtype, load_model

    class Trainer(SFTTrainer):
        """Without TRL's model card, which would go into the run's folder: lineage is in the manifest."""

        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """Write none."""

    class Checks(TrainerCallback):
        """What can only be seen once the model is wrapped."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """See that gradients are averaged where there are several processes."""
            wrapped = isinstance(trainer.model_wrapped, DistributedDataParallel)
            if wrapped != (args.world_size > 1):
                raise ConfigError(
                    f"{args.world_size} processes, but the model is a {type(trainer.model_wrapped).__name__}"
                )

    cuda = torch.cuda.is_available()
    if cuda and torch.cuda.device_count() > plan.processes_per_node == 1:
        raise ConfigError(
            f"spec.processesPerNode: 1, but {torch.cuda.device_count()} GPUs are there: use one process for each"
        )
    compute = compute_dtype(plan.training.dtype)
    args = settings(plan, compute == torch.bfloat16, cuda)
    if args.world_size != plan.nodes * plan.processes_per_node:
        raise ConfigError(
            f"{args.world_size} processes train, but the plan says {plan.nodes} x {plan.processes_per_node}"
        )
    set_seed(plan.training.seed)
    # Full: float32 weights (under bfloat16 autocast where that is the compute dtype), so that small updates count.
    model: Any = load_model(
        plan.model,
        torch.float32 if plan.tuner.type == "Full" else compute,
        quantization=tuner.quantization_config(plan.tuner, compute),
        device=(args.local_process_index if cuda else "cpu") if plan.tuner.type == "QLoRA" else None,
    )
    model.config.use_cache = False
    if plan.tuner.type != "Full":
        model = tuner.add_adapter(model, plan.tuner)
    trainer = Trainer(
        model=model, args=args, train_dataset=dataset, processing_class=tokenizer, callbacks=[Checks(), *callbacks]
    )
    trainer.remove_callback(PrinterCallback)
    if plan.tuner.type != "Full":
        # TRL casts adapters over a quantised base to bfloat16, whose steps of 1/256 swallow small updates.
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    tuner.check_tuner(model, plan.tuner)
    return trainer


def finish(plan: TrainPlan, trainer: SFTTrainer, sources: list[SourceFile]) -> Ending:
    """Publish what was trained; rank 0 writes, the others wait."""
    import torch

    from tunesmith_trainer import artifact, curves
    from tunesmith_trainer.model import own_dtype, save_model

    done = Ending(
        reason="Completed", message=f"{trainer.state.global_step} steps", rank=int(os.environ.get("RANK", "0"))
    )
    if trainer.is_world_process_zero():
        model: Any = trainer.model
        kind: Literal["adapters", "models"] = "models" if plan.tuner.type == "Full" else "adapters"
        with artifact.draft(plan, kind) as folder:
            if kind == "models":
                save_model(model, plan.model, own_dtype(plan.model), folder)
            else:
                artifact.save_adapter(model, plan.model.uri, folder)
            made = artifact.publish(folder, plan, kind, sources)
        print(f"artefact {made.uri}")
        done = done.model_copy(update={"artifact": made})
        try:
            curves.draw(Path(plan.output.run) / "logging.jsonl", Path(plan.output.run) / "images")
        except Exception as error:  # a picture is not worth a training
            print(f"no curves: {error}")
    trainer.accelerator.wait_for_everyone()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return done
