"""Artefacts: written to a temporary folder of the store, named by their digest, moved into place in one step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunesmith import artifacts
from tunesmith.api.base import Artifact, ArtifactKind
from tunesmith.training.location import join
from tunesmith.training.plan import AnyPlan, InferencePlan, MergePlan, Place, TrainPlan, digest

from tunesmith_trainer.card import Metrics, card, results_card
from tunesmith_trainer.model import manifest_of
from tunesmith_trainer.reading import SourceFile
from tunesmith_trainer.trained import FIELD, merged_as

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

PACKAGES = ("torch", "transformers", "trl", "peft")


@contextmanager
def draft(plan: AnyPlan, kind: ArtifactKind, part: str = "") -> Iterator[Path]:
    """A new folder in the store for an artefact in the making. What an earlier attempt of this job left is cleared."""
    folder = Path(plan.output.path) / kind / f".tmp-{plan.job.uid}{part}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(
    folder: Path, plan: AnyPlan, kind: ArtifactKind, metrics: Metrics, sources: Sequence[SourceFile] = ()
) -> Artifact:
    """Move a finished draft to `<store>/<kind>/<sha256>/`, with its manifest and its card."""
    text = results_card(plan, metrics) if isinstance(plan, InferencePlan) else card(plan, kind, folder, metrics)
    (folder / artifacts.CARD).write_text(text)
    for path in (*artifacts.files(folder), *folder.glob(artifacts.CARD)):
        path.chmod(0o644)  # other pods of other users read it
    name = artifacts.digest(folder)
    base: dict[str, Any] = {"uri": plan.model.uri}
    if known := manifest_of(plan.model).get("digest"):
        base["digest"] = known
    manifest = {
        "kind": kind,
        "digest": f"sha256:{name}",
        "job": {"kind": plan.kind, **plan.job.body()},
        "base": base,
        "planDigest": digest(plan),
        "plan": plan.body(),
        "data": [{"uri": source.uri, "digest": source.digest} for source in sources],
        "versions": {package: version(package) for package in PACKAGES},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if adapters := adapters_of(plan):
        manifest["adapters"] = [{"uri": one.uri, "digest": manifest_of(one).get("digest")} for one in adapters]
    if isinstance(plan, MergePlan) and (asked := merged_as(plan.adapters)[0]):
        manifest[FIELD] = asked.body()
    if isinstance(plan, MergePlan) and plan.quantization:
        manifest["quantization"] = plan.quantization.body()
    (folder / artifacts.MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    artifacts.publish(folder, Path(plan.output.path) / kind, name)
    return Artifact(kind=kind, uri=join(plan.output.uri, kind, name), digest=f"sha256:{name}", base=plan.model.uri)


def adapters_of(plan: AnyPlan) -> Sequence[Place]:
    """The adapters that a job took."""
    if isinstance(plan, InferencePlan):
        return [plan.adapter] if plan.adapter else []
    return plan.adapters if isinstance(plan, MergePlan) else []


def write_files(folder: Path, files: dict[str, Any]) -> None:
    """Write JSON files by name."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def initial_adapter(plan: TrainPlan) -> Path:
    """Where a PiSSA lies as it began."""
    return Path(plan.output.run) / "initial-adapter"


def save_adapter(
    model: PeftModel,
    base_uri: str,
    folder: Path,
    state: dict[str, torch.Tensor] | None = None,
    initial: Path | None = None,
) -> None:
    """Write adapter_model.safetensors and adapter_config.json, the same bytes for the same weights; those of `state`
    where they are not in the model itself. With `initial`, as what was learned since: that fits the untouched base.
    """
    model.peft_config["default"].base_model_name_or_path = base_uri
    model.save_pretrained(
        str(folder),
        save_embedding_layers=False,
        state_dict=state,
        path_initial_model_for_weight_conversion=initial and str(initial),
    )
    config = json.loads((folder / "adapter_config.json").read_text())
    # PEFT writes a set in an order that differs from process to process.
    for name in ("target_modules", "modules_to_save"):
        if isinstance(config.get(name), list):
            config[name] = sorted(config[name])
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
