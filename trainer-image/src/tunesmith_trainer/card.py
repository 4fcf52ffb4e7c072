"""The card of an artefact: README.md with the front matter that hubs read, for people who find it there."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import __version__
from tunesmith.api.base import ArtifactKind
from tunesmith.api.finetunejob import BestEvaluation
from tunesmith.fetching import hub, modelscope
from tunesmith.training.plan import InferencePlan, MergePlan, TrainPlan

from tunesmith_trainer.infer.answers import RESULTS
from tunesmith_trainer.model import manifest_of

if TYPE_CHECKING:
    from huggingface_hub import CardData

TAGS = {
    "Classification": "text-classification",
    "Embedding": "sentence-similarity",
    "Reranker": "text-ranking",
    "RewardModel": "text-classification",
}
"""Pipeline tags of the methods whose models do not write text."""
TIMINGS = ("_runtime", "_per_second", "_time")
Metrics = Mapping[str, float | int | None]


def card(plan: TrainPlan | MergePlan, kind: ArtifactKind, folder: Path, metrics: Metrics) -> str:
    """The card of the artefact in `folder`."""
    from huggingface_hub import ModelCardData

    method = method_of(plan)
    quantized = isinstance(plan, MergePlan) and plan.quantization is not None
    data = ModelCardData(
        base_model=base_model(plan),
        base_model_relation=relation(kind, quantized) if base_model(plan) else None,
        library_name=library(kind, folder),
        pipeline_tag=TAGS.get(method or "") or pipeline(Path(plan.model.path)),
        datasets=hub_names(one.uri for one in plan.datasets) if isinstance(plan, TrainPlan) else None,
        license=plan.output.license,
        tags=["tunesmith", *(word.lower() for word in words(plan) if word)],
    )
    parts = [
        f"# {plan.job.name}",
        f"{'An adapter' if kind == 'adapters' else 'A model'} made by tunesmith {__version__} from "
        f"`{plan.model.uri}`. `manifest.json` has the whole plan.",
        table("How", settings(plan)),
        table("Data", datasets(plan) if isinstance(plan, TrainPlan) else []),
        table("Metrics", numbers(metrics)),
    ]
    return page(data, parts)


def page(data: CardData, parts: Sequence[str]) -> str:
    """A card: its front matter, and the parts that say something."""
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def results_card(plan: InferencePlan, metrics: Metrics) -> str:
    """The card of answers, which a hub keeps as a dataset: of its files the lines alone are rows."""
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        configs=[{"config_name": "default", "data_files": RESULTS}],
        license=plan.output.license,
        tags=["tunesmith", "answers"],
    )
    generation = plan.generation
    how: list[tuple[str, Any]] = [
        ("adapter", f"`{plan.adapter.uri}`" if plan.adapter else None),
        ("tokens of an answer at most", generation.max_tokens),
        ("temperature", generation.temperature),
        ("top p", generation.top_p if generation.temperature else None),
        ("seed", generation.seed if generation.temperature else None),
        ("rows at most", plan.max_rows),
    ]
    parts = [
        f"# {plan.job.name}",
        f"Answers of `{plan.model.uri}`, made by tunesmith {__version__}. `manifest.json` has the whole plan.",
        table("How", shown(how)),
        table("Asked", datasets(plan)),
        table("Metrics", numbers(metrics)),
    ]
    return page(data, parts)


def final_metrics(history: Sequence[Mapping[str, Any]], step: int, best: BestEvaluation | None) -> dict[str, float]:
    """What a training's own log says of the step that is published."""
    found: dict[str, float] = {"steps": step}
    for line in history:
        if line["step"] > step:
            break
        if "loss" in line:
            found["training loss"] = line["loss"]
        evaluated = {name: value for name, value in line.items() if name.startswith("eval_")}
        found |= {
            name.removeprefix("eval_").replace("_", " ") + " (evaluation)": value
            for name, value in evaluated.items()
            if not name.endswith(TIMINGS) and isinstance(value, int | float)
        }
    if best:
        found[f"best {best.metric}, at step {best.step}"] = best.value
    return found


def words(plan: TrainPlan | MergePlan) -> list[str | None]:
    """Tags by which it is found."""
    if isinstance(plan, TrainPlan):
        return [plan.method.type, plan.tuner.peft.type if plan.tuner.peft else plan.tuner.type]
    return [method_of(plan), "merge", plan.quantization.method if plan.quantization else None]


def method_of(plan: TrainPlan | MergePlan) -> str | None:
    """How it, or the last of its adapters, was trained."""
    if isinstance(plan, TrainPlan):
        return plan.method.type
    last = max(plan.adapters, key=lambda adapter: adapter.step)
    found = manifest_of(last).get("plan", {}).get("method", {}).get("type")
    return None if found is None else str(found)


def hub_names(uris: Iterable[str | None]) -> list[str] | None:
    """Names of those that are a repository of a hub, without their revisions."""
    matches = [hub.URI.fullmatch(uri) or modelscope.URI.fullmatch(uri) for uri in uris if uri]
    return list(dict.fromkeys(match["repository"] for match in matches if match)) or None


def base_model(plan: TrainPlan | MergePlan) -> str | None:
    """The hub's name of the base, or of what that was made from."""
    names = hub_names([plan.model.uri, manifest_of(plan.model).get("base", {}).get("uri")])
    return names[0] if names else None


def relation(kind: str, quantized: bool) -> str:
    """How it comes from its base, in the Hub's words."""
    return "quantized" if quantized else "adapter" if kind == "adapters" else "finetune"


def library(kind: str, folder: Path) -> str:
    """Which library loads it."""
    if kind == "adapters":
        return "peft"
    if (folder / "modules.json").exists():
        return "sentence-transformers"
    return "gguf" if any(folder.glob("*.gguf")) else "transformers"


def pipeline(base: Path) -> str:
    """What a model that writes text takes, by its base's configuration."""
    config = json.loads((base / "config.json").read_text())
    if "vision_config" in config:
        return "image-text-to-text"
    return "audio-text-to-text" if "audio_config" in config else "text-generation"


def settings(plan: TrainPlan | MergePlan) -> list[tuple[str, str]]:
    """Names and values of what the plan sets."""
    if isinstance(plan, MergePlan):
        return shown([
            *(("adapter", f"`{one.uri}`, weight {one.weight:g}, step {one.step}") for one in plan.adapters),
            ("combined by", plan.combine.method if len(plan.adapters) > 1 else None),
            ("dtype", plan.dtype),
            ("quantization", plan.quantization.method if plan.quantization else None),
        ])  # fmt: skip
    tuner, training = plan.tuner, plan.training
    return shown([
        ("method", plan.method.type),
        ("tuner", tuner.peft.type if tuner.peft else tuner.type),
        ("rank", tuner.rank or None),
        ("alpha", tuner.alpha or None),
        ("target modules", ", ".join(tuner.target_modules) or tuner.target_pattern),
        ("quantization of the base", tuner.quantization),
        ("epochs", training.epochs if training.max_steps is None else None),
        ("steps at most", training.max_steps),
        ("optimizer", training.optimizer),
        ("learning rate", training.learning_rate),
        ("schedule", f"{training.scheduler}, warm-up {training.warmup_ratio:g}"),
        ("weight decay", training.weight_decay),
        ("global batch size", training.global_batch_size),
        ("longest row", f"{training.max_length} tokens"),
        ("dtype", training.dtype),
        ("seed", training.seed),
        ("distribution", f"{plan.distribution.strategy}, {plan.world_size} process(es)"),
    ])  # fmt: skip


def shown(pairs: Iterable[tuple[str, Any]]) -> list[tuple[str, str]]:
    """Names and values as text, of what there is."""
    return [(name, f"{one:g}" if isinstance(one, float) else str(one)) for name, one in pairs if one is not None]


def numbers(metrics: Metrics) -> list[tuple[str, str]]:
    """Names and values of what was measured."""
    return [
        (name, str(value) if isinstance(value, int) else f"{value:.6g}")
        for name, value in metrics.items()
        if value is not None
    ]


def datasets(plan: TrainPlan | InferencePlan) -> list[tuple[str, str]]:
    """Addresses of what was read, and how much of it."""
    return [(f"`{one.uri}`", f"{one.sample} rows" if one.sample else "all rows") for one in plan.datasets]


def table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """A table of two columns; empty where there are no rows."""
    if not rows:
        return ""
    cells = [[cell.replace("\n", " ").replace("|", "\\|") for cell in row] for row in rows]
    lines = "\n".join(f"| {name} | {value} |" for name, value in cells)
    return f"## {title}\n\n| | |\n|---|---|\n{lines}"
