"""The trainer's program. Pods call `train`, `merge` and `infer --plan`; the other commands are for people, on any
machine. Nothing heavy is imported before the plan is read and the files that it names are looked at: most errors are
told within a second.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import ValidationError
from tunesmith.api.quantization import CalibrationAlgorithm, QuantizationMethod
from tunesmith.training.plan import InferencePlan, MergePlan, TrainPlan
from tunesmith.training.report import PLAN_FILE, Ending

from tunesmith_trainer import ending
from tunesmith_trainer.errors import ConfigError, InternalError, Interrupted, TrainerError

# Models and data are mounted or fetched before this program starts. It reaches no hub and reports to none.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "MPLBACKEND": "Agg",
}

Plan = TypeVar("Plan", TrainPlan, MergePlan, InferencePlan)

app = typer.Typer(
    name="tunesmith-trainer", help="Fine-tunes language models.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False,
)  # fmt: skip


def read_plan(kind: type[Plan], path: Path) -> Plan:
    """The plan at `path`."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"no plan: {path}: {error.strerror}. The operator mounts it there; or give --plan") from None
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        raise ConfigError(f"{path} is no plan for a job of kind {kind.model_fields['kind'].default}: {found}") from None


def offline() -> None:
    """Reach no hub, and report to none."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    # It recommends a kernel package, which would be fetched from a hub.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def told(work: Callable[[], None]) -> int:
    """Run `work` for a person: failures that are told apart are one line, and the exit code."""
    try:
        work()
    except TrainerError as error:
        print(f"{error.reason}: {error}", file=sys.stderr)
        if isinstance(error, Interrupted):
            print("Run the same command again: it goes on from there", file=sys.stderr)
        return error.exit_code
    return 0


PlanOption = Annotated[Path, typer.Option("--plan", help="The plan, as the operator makes it.")]


@app.command()
def train(path: PlanOption = Path(PLAN_FILE)) -> None:
    """Train as a FineTuneJob's plan says; in a pod."""
    offline()

    def work() -> Ending:
        from tunesmith_trainer.inputs import wait_for_inputs

        plan = read_plan(TrainPlan, path)
        wait_for_inputs(plan)
        from tunesmith_trainer.train import train

        return train(plan)

    raise typer.Exit(ending.run(work))


@app.command()
def merge(path: PlanOption = Path(PLAN_FILE)) -> None:
    """Merge as a MergeJob's plan says; in a pod."""
    offline()

    def work() -> Ending:
        from tunesmith_trainer.inputs import wait_for_inputs

        plan = read_plan(MergePlan, path)
        wait_for_inputs(plan)
        from tunesmith_trainer.merge import merge

        return merge(plan)

    raise typer.Exit(ending.run(work))


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="Folder of a model, as an artefact of kind models is.")],
    method: Annotated[QuantizationMethod, typer.Option(help="As spec.quantization of a MergeJob.")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not be there yet.")],
    group_size: Annotated[int | None, typer.Option(help="Of W4A16: weights that share a scale.")] = None,
    gguf_type: Annotated[str | None, typer.Option(help="Of GGUF: how matrices are stored.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="A dataset, for W4A16 and W8A8: choose the rounding by its rows.")
    ] = None,
    algorithm: Annotated[CalibrationAlgorithm | None, typer.Option(help="How to choose by --data; else GPTQ.")] = None,
    sample: Annotated[int | None, typer.Option(help="How many rows of --data are read; else 512.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Tokens of a row of --data; else 2048.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="Largest allowed error of the logits.")] = None,
) -> None:
    """Write a model in a smaller form, and compare its logits with the model's own."""
    offline()

    def work() -> None:
        from tunesmith_trainer.export.folder import calibration, export_folder, given

        by_data = calibration(data, given(algorithm=algorithm, maxLength=max_length), given(sample=sample))
        asked = given(method=method, groupSize=group_size, ggufType=gguf_type, calibration=by_data, tolerance=tolerance)
        error = export_folder(model, asked, out)
        print(f"{out}: logit error {error:.3g}")

    raise typer.Exit(told(work))


@app.command()
def demo_model(out: Annotated[Path, typer.Option(help="The folder to write.")]) -> None:
    """Write the demo's base model, SmolLM2-135M-Instruct."""
    offline()

    def work() -> Ending:
        from tunesmith_trainer.demo import write_demo_model

        write_demo_model(out)
        return Ending(reason="Completed", message=f"wrote {out}")

    raise typer.Exit(ending.run(work))


@app.command()
def run(
    files: Annotated[
        list[Path], typer.Argument(help="YAML files with a FineTuneJob and the ConfigMaps that it names.")
    ],
    name: Annotated[str | None, typer.Option(help="Which FineTuneJob of the files.")] = None,
    claims: Annotated[
        Path, typer.Option(help="Folder with a folder for each claim; what is made goes to its tunesmith-store.")
    ] = Path(),
    from_scratch: Annotated[bool, typer.Option(help="Do not go on from an earlier run's checkpoint.")] = False,
) -> None:
    """Train on this machine, without a cluster. Ctrl-C makes a checkpoint, and the same command goes on from it."""

    def work() -> None:
        from tunesmith_trainer.local.running import run

        made = run(files, name=name, claims=claims, from_scratch=from_scratch, show=True)
        print(f"artefact: {made.path}\nrun: {made.run}")

    raise typer.Exit(told(work))


@app.command()
def infer(
    artifact: Annotated[
        str | None, typer.Argument(help="An artefact or a model: its folder, or pvc://claim/path.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="A question. Without it and --data: a conversation.")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--data", help="`validation`, the rows that the run kept aside, or a dataset.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where a line of JSON for each row of --data goes.")] = Path(
        "results.jsonl"
    ),
    system: Annotated[str | None, typer.Option(help="A system prompt.")] = None,
    response: Annotated[str | None, typer.Option(help="The answer that a reward model judges.")] = None,
    document: Annotated[list[str] | None, typer.Option(help="A document for a reranker; once for each.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="An image of the prompt; once for each.")] = None,
    video: Annotated[list[Path] | None, typer.Option(help="A video of the prompt.")] = None,
    audio: Annotated[list[Path] | None, typer.Option(help="A sound of the prompt.")] = None,
    base: Annotated[
        Path | None, typer.Option(help="The folder of an adapter's base, if it lies elsewhere now.")
    ] = None,
    claims: Annotated[Path, typer.Option(help="Folder with a folder for each claim.")] = Path(),
    batch_size: Annotated[int, typer.Option(min=1, help="Rows at once.")] = 8,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows of --data.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of an answer at most.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="0: always the likeliest token.")] = 0.0,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Tokens are drawn from this share.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    path: Annotated[Path | None, typer.Option("--plan", help="In a pod: an InferenceJob's plan says it all.")] = None,
) -> None:
    """Ask what a job made: once, in a conversation, or over a dataset. Classifiers, embedding, reward and reranking
    models say what they say as JSON.
    """
    offline()
    if path is not None:
        raise typer.Exit(ending.run(lambda: inferred(path)))

    def work() -> None:
        if artifact is None:
            raise ConfigError("say what to ask: the folder of an artefact or of a model")
        from tunesmith_trainer.infer.running import infer
        from tunesmith_trainer.infer.subject import Sampling

        infer(
            artifact, prompt=prompt, source=source, out=out, system=system, response=response,
            documents=document or [], media={"images": image or [], "videos": video or [], "audios": audio or []},
            base=base, claims=claims, batch_size=batch_size, limit=limit,
            sampling=Sampling(max_new_tokens, temperature, top_p, seed), lines=typed(),
        )  # fmt: skip

    raise typer.Exit(told(work))


def inferred(path: Path) -> Ending:
    """Ask as an InferenceJob's plan says; in a pod."""
    from tunesmith_trainer.inputs import wait_for_inputs

    plan = read_plan(InferencePlan, path)
    wait_for_inputs(plan)
    from tunesmith_trainer.infer.job import infer

    return infer(plan)


@app.command()
def push(
    artifact: Annotated[str, typer.Argument(help="An artefact: its folder, or pvc://claim/path.")],
    uri: Annotated[
        str,
        typer.Argument(help="hf://org/name@branch, ms://org/name, s3://bucket/prefix, oci://registry/repository:tag"),
    ],
    secret: Annotated[
        Path | None, typer.Option(help="Folder with the keys of a Secret as files. Without it: the environment.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="A repository that is made for it is public.")] = False,
    claims: Annotated[Path, typer.Option(help="Folder with a folder for each claim.")] = Path(),
) -> None:
    """Push what a job made to a hub, a bucket or a registry, from where it can be fetched again."""

    def work() -> None:
        from tunesmith.pushing import TRANSIENT, PushError
        from tunesmith.pushing import push as push_folder

        from tunesmith_trainer.local.addresses import Here, keys_here

        folder = Here(claims.resolve()).path(artifact, "model") if "://" in artifact else Path(artifact)
        try:
            with keys_here(uri) as here:
                pushed = push_folder(uri, folder, secret or here, not public)
        except PushError as error:
            raise (InternalError if error.code == TRANSIENT else ConfigError)(str(error)) from None
        if pushed.revision:
            print(f"revision {pushed.revision}")

    raise typer.Exit(told(work))


def typed() -> Iterator[str]:
    """The lines that are typed, up to Ctrl-D or Ctrl-C."""
    mark = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            yield input(mark)
        except (EOFError, KeyboardInterrupt):
            return


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run the command. Returns the exit code."""
    try:
        app(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
