"""Training: any method, over any tuner and strategy, in any number of processes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tunesmith.training.capabilities import FULL_PRECISION, Cell, Refused, base_of, verdict
from tunesmith.training.evaluating import UNMEASURED
from tunesmith.training.plan import Place, TrainPlan
from tunesmith.training.report import Ending

from tunesmith_trainer import strategy
from tunesmith_trainer.ending import classify, own_rank
from tunesmith_trainer.errors import ConfigError, Interrupted
from tunesmith_trainer.model import check_files
from tunesmith_trainer.reading import SourceFile, read_plan, write_dropped
from tunesmith_trainer.server import PORT

if TYPE_CHECKING:
    from tunesmith.api.finetunejob import BestEvaluation

    from tunesmith_trainer.evaluation import Evaluation
    from tunesmith_trainer.lifecycle import Lifecycle


def train(plan: TrainPlan) -> Ending:
    """Train as `plan` says and publish the artefact. Cheap checks first: torch is loaded after them."""
    check_world(plan)
    strategy.check(plan.distribution)
    check_base(plan, base_of(check_files(plan.model, quantized=True)) or "")
    data = read_plan(plan)

    from tunesmith_trainer import group
    from tunesmith_trainer.build import build
    from tunesmith_trainer.checkpoint import Checkpoints
    from tunesmith_trainer.drawn import Drawn
    from tunesmith_trainer.evaluation import Evaluation
    from tunesmith_trainer.fencing import Fence
    from tunesmith_trainer.methods import prepare
    from tunesmith_trainer.model import load_tokenizer
    from tunesmith_trainer.progress import Reporter
    from tunesmith_trainer.stopping import Pace
    from tunesmith_trainer.trackers import Trackers
    from tunesmith_trainer.utilization import gpu, most_tokens

    run = Path(plan.output.run)
    trackers = Trackers(plan)
    prepared = prepare(plan, data, load_tokenizer(plan.model, plan.chat_template))
    if own_rank() == 0:
        run.mkdir(parents=True, exist_ok=True)
        Path(plan.checkpoint.path).mkdir(parents=True, exist_ok=True)
        (run / "plan.json").write_text(plan.model_dump_json(by_alias=True, indent=2) + "\n")
        print(prepared.summary)
        write_dropped(run, data.dropped)
    kept = plan.checkpoint
    checkpoints = Checkpoints(Path(kept.path), kept.keep, plan.attempt, plan.world_size, plan.distribution.strategy)
    fence = Fence(Path(kept.path), plan.attempt)
    pace, reporter = Pace(kept), Reporter(run / "logging.jsonl", PORT, most_tokens(plan, gpu()))
    # The reporter comes first: a step counts as made before it is judged.
    evaluation = None
    if prepared.validation and plan.method.type not in UNMEASURED:
        evaluation = Evaluation(plan, lambda best: reporter.update(best=best))
    if prepared.validation and not evaluation:
        print(f"{plan.method.type} is not evaluated on the rows kept aside: its metrics are in every log line")
    # Evaluation comes last: what it wants beside the step's checkpoint is added to that.
    trainer = build(
        plan, prepared, checkpoints, fence, [reporter, pace, trackers, *([evaluation] if evaluation else [])]
    )
    try:
        resume = begin(trainer, evaluation)
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        if pace.stopped:
            raise Interrupted(f"stopped by SIGTERM at step {trainer.state.global_step}, after a checkpoint of it")
        passed = sum(group.all_say(prepared.dataset.passed if isinstance(prepared.dataset, Drawn) else 0))
        chosen, published = evaluation.choose() if evaluation else ("", trainer.state.global_step)
        ending = finish(plan, trainer, data.sources, chosen, published, reporter.report.best)
        told = [ending.message]
        if left_out := len(data.dropped):
            told.append(f"{left_out} rows left out, see dropped.jsonl")
        if passed:
            told.append(prepared.dataset.told(passed))
        ending = ending.model_copy(update={"message": "; ".join(told)})
    except Exception as error:
        failure = classify(error)
        failure.step, failure.checkpoint_step = trainer.state.global_step, trainer.checkpoint_step
        if failure is error:
            raise
        raise failure from error
    finally:
        trackers.close()
        reporter.close()
    return ending


def begin(trainer: Lifecycle, evaluation: Evaluation | None) -> Path | None:
    """Say that this attempt has begun, and find the checkpoint that it goes on from; the same one on all processes."""
    from tunesmith_trainer import group, universal
    from tunesmith_trainer.checkpoint import step_of

    checkpoints = trainer.checkpoints
    trainer.fence.check(group.first_says)

    def find() -> tuple[Path | None, bool]:
        checkpoints.clear_drafts()
        found = checkpoints.newest()
        if found is None:
            return None, False
        print(f"resuming from {found.name}")
        if not checkpoints.needs_conversion(found):
            return found, False
        print(f"another number of processes than {checkpoints.world_size} wrote it: it is converted")
        universal.convert(found, checkpoints.converted)
        return found, True

    resume, converted = group.first_says(find)
    if resume:
        trainer.checkpoint_step = trainer.state.global_step = step_of(resume)
        trainer.go_on(resume)
        trainer.stopped_early = group.first_says(lambda: bool(evaluation and evaluation.over(resume)))
    if converted:
        universal.expect(trainer)
        return checkpoints.converted
    return resume


def check_base(plan: TrainPlan, base: str) -> None:
    """See that the plan goes with how the model's weights are stored; the operator cannot look at every model."""
    cell = Cell(plan.method.type, plan.tuner.type, plan.distribution.strategy, base=base)
    if base != FULL_PRECISION and isinstance(refused := verdict(cell), Refused):
        raise ConfigError(str(refused))


def check_world(plan: TrainPlan) -> None:
    """See that as many processes run as the plan says, by torchrun's environment."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != plan.world_size:
        raise ConfigError(
            f"{world} process(es) run, but the plan says {plan.nodes} node(s) x {plan.processes_per_node} process(es): "
            f"start this by torchrun with --nnodes {plan.nodes} --nproc-per-node {plan.processes_per_node}"
        )


def finish(
    plan: TrainPlan, trainer: Lifecycle, sources: list[SourceFile], chosen: str, published: int,
    best: BestEvaluation | None,
) -> Ending:  # fmt: skip
    """Publish what was trained; rank 0 writes, the others wait. `published` is the step whose weights these are, and
    `chosen` says why.
    """
    from tunesmith_trainer import artifact, curves, group
    from tunesmith_trainer.card import final_metrics
    from tunesmith_trainer.chat import DEFAULT
    from tunesmith_trainer.model import keep_ends, load_tokenizer, own_dtype, save_model, write_ends
    from tunesmith_trainer.trained import TEMPLATE

    step = trainer.state.global_step
    done = Ending(
        reason="Completed", message=f"{step} steps{chosen}", rank=own_rank(), step=step,
        checkpoint_step=trainer.checkpoint_step, best=best,
    )  # fmt: skip
    full = plan.tuner.type == "Full"
    model: Any = trainer.model
    split = strategy.is_split(plan.distribution)
    state = strategy.whole_state(model, trained_only=not full) if split else None
    trainer.fence.check(group.first_says)
    if group.is_first():
        kind: Literal["adapters", "models"] = "models" if full else "adapters"
        with artifact.draft(plan, kind) as folder:
            changes, others = trainer.completed()
            if full:
                save_model(model, plan.model, own_dtype(plan.model), folder, state, changes)
            else:
                pissa = plan.tuner.initialization == "PiSSA"
                initial = artifact.initial_adapter(plan) if pissa else None
                artifact.save_adapter(model, plan.model.uri, folder, state, initial)
                write_ends(folder, plan.model, load_tokenizer(plan.model, plan.chat_template))
            artifact.write_files(folder, others)
            if plan.chat_template.type == "Default":
                (folder / TEMPLATE).write_text(DEFAULT)
            if full:
                keep_ends(Place(uri=plan.output.uri, path=str(folder)))
            metrics = final_metrics(trainer.state.log_history, published, best)
            made = artifact.publish(folder, plan, kind, metrics, sources)
        print(f"artefact {made.uri}")
        done = done.model_copy(update={"artifact": made})
        try:
            curves.draw(Path(plan.output.run))
        except Exception as error:  # a picture is not worth a training
            print(f"no curves: {error}")
    group.barrier()
    group.leave()
    return done
