"""A FineTuneJob's file -> the plan of a run on this machine, as the operator would make it for a pod."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tunesmith.api.base import API_VERSION
from tunesmith.api.finetunejob import FineTuneJob, FineTuneJobSpec
from tunesmith.api.quantity import amount
from tunesmith.inspecting.files import open_files
from tunesmith.inspecting.model import inspect
from tunesmith.inspecting.refusal import Refusal
from tunesmith.training.matrix import GPUS, PlanError, refuse
from tunesmith.training.memory import Choice, choose
from tunesmith.training.plan import Job, TrainPlan, place
from tunesmith.training.planning import run_folder, train_plan
from tunesmith.training.report import Ending

from tunesmith_trainer.errors import BY_REASON, ConfigError
from tunesmith_trainer.fencing import Fence
from tunesmith_trainer.local.addresses import Here, from_paths
from tunesmith_trainer.local.checking import check

LEARNED = ("model", "datasets", "validation", "method", "tuner", "training", "distribution")
"""Parts of a spec that make a run what it is: with others, a run of the same name starts anew."""
DEFAULT_STORE = "pvc://tunesmith-store"
"""As in the chart."""


@dataclass(frozen=True)
class Source:
    """A job as it was given."""

    resource: dict[str, Any]
    config_maps: Mapping[str, Mapping[str, str]]
    folder: Path
    """Where its relative paths begin."""


Given = str | Path | Sequence[str | Path] | Mapping[str, Any] | FineTuneJob
"""A job's file or files, the resource, or its spec alone."""


def read(given: Given, name: str | None = None) -> Source:
    """A job, and the ConfigMaps beside it. `name` chooses among several."""
    if isinstance(given, FineTuneJob):
        given = given.body()
    if isinstance(given, Mapping):
        found = copy.deepcopy(dict(given))
        documents = [(found if "spec" in found else {"spec": found}, Path.cwd())]
    else:
        paths = [given] if isinstance(given, str | Path) else given
        documents = [(one, Path(path).resolve().parent) for path in paths for one in objects(Path(path))]
    maps = {one["metadata"]["name"]: one.get("data") or {} for one, _ in documents if one.get("kind") == "ConfigMap"}
    jobs = [(one, folder) for one, folder in documents if one.get("kind", "FineTuneJob") == "FineTuneJob"]
    chosen = [(one, folder) for one, folder in jobs if name in (None, one.get("metadata", {}).get("name"))]
    if len(chosen) != 1:
        names = [one.get("metadata", {}).get("name") for one, _ in jobs]
        raise ConfigError(f"{len(chosen)} FineTuneJobs of {names}: choose one by its name (--name)")
    [(job, folder)] = chosen
    resource: dict[str, Any] = {
        "apiVersion": API_VERSION, "kind": "FineTuneJob", **job,
        "metadata": {"name": "run", **job.get("metadata", {})},
    }  # fmt: skip
    if resource["apiVersion"] != API_VERSION:
        raise ConfigError(f"apiVersion: {resource['apiVersion']}; expected {API_VERSION}")
    return Source(resource, maps, folder)


def objects(path: Path) -> list[dict[str, Any]]:
    """The objects in a YAML file."""
    try:
        found = [one for one in yaml.safe_load_all(path.read_text()) if one]
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: it cannot be read as YAML: {error}") from None
    for one in found:
        if not isinstance(one, dict):
            raise ConfigError(f"{path}: found {type(one).__name__}; expected objects with kind and spec")
    return found


def plan_for(source: Source, claims: Path) -> tuple[TrainPlan, Choice | None]:
    """The plan of the run's next attempt, and the estimate of its memory where it can be made."""
    resource = copy.deepcopy(source.resource)
    if not isinstance(resource.get("spec"), dict):
        raise ConfigError("spec: it is missing; expected an object with model, datasets and method")
    from_paths(resource["spec"], source.folder)
    job = check(resource)
    if job.spec.nodes > 1:
        raise ConfigError(f"spec.nodes: {job.spec.nodes}, but this is one machine: use 1, and processesPerNode")
    body = resource["spec"]
    identity = Job(
        namespace=resource["metadata"].get("namespace", "local"),
        name=resource["metadata"]["name"],
        uid=hashlib.sha256(json.dumps([body.get(part) for part in LEARNED], sort_keys=True).encode()).hexdigest(),
    )
    here = Here(claims, source.config_maps)
    output = here.path(job.spec.output.uri or DEFAULT_STORE, "model")
    kept = here.path(job.spec.checkpoint.storage, "model") if job.spec.checkpoint.storage else output
    body.pop("output", None)
    body.get("checkpoint", {}).pop("storage", None)
    here.localize(body)
    gpus = gpu_memory()
    if gpus and job.spec.processes_per_node is None and not any(
        gpu in (job.spec.resources.limits or {}) for gpu in GPUS
    ):  # fmt: skip
        body["processesPerNode"] = len(gpus)
    spec = FineTuneJobSpec.model_validate(body)
    try:
        plan = train_plan(identity, spec, finished(spec, output, identity.namespace), f"file://{output}")
    except PlanError as error:
        raise ConfigError(str(error)) from None
    folder = place(run_folder(identity, f"file://{kept}"))
    plan = plan.model_copy(
        update={
            "checkpoint": plan.checkpoint.model_copy(update=dict(folder)),
            "attempt": Fence(Path(folder.path), 0).newest() + 1,
        }
    )
    choice = estimated(spec, plan, gpus) if spec.memory.check != "Disabled" else None
    if choice:
        plan = plan.model_copy(update={"distribution": choice.distribution})
        if choice.fits is False and spec.memory.check == "Refuse":
            raise ConfigError(f"{choice.status.summary}. To try it all the same, set spec.memory.check: Warn")
    return TrainPlan.model_validate(here.restored(plan.body())), choice


def finished(spec: FineTuneJobSpec, store: Path, namespace: str) -> dict[tuple[str, str], str]:
    """Artefacts of the jobs that a spec refers to, of runs in the same store."""
    found: dict[tuple[str, str], str] = {}
    for source in (spec.model, *(source for _, source in spec.method.sources())):
        if source.reference is None:
            continue
        kind, name = source.reference
        if kind == "MergeJob":
            raise ConfigError(f"mergeJobRef: {name}: MergeJobs run in a cluster only: give the model by its uri")
        endings = sorted(
            store.glob(f"jobs/{namespace}/{name}-????????/ending.json"), key=lambda path: path.stat().st_mtime
        )
        made = [
            ending.artifact for path in endings if (ending := Ending.model_validate_json(path.read_bytes())).artifact
        ]
        if not made:
            raise ConfigError(f"fineTuneJobRef: {name}: no run of it has finished in {store}: run it first")
        found[kind, name] = made[-1].uri
    return found


def estimated(spec: FineTuneJobSpec, plan: TrainPlan, gpus: list[int]) -> Choice | None:
    """The estimate for this machine's devices; None where the model's numbers cannot be had from its files."""
    files = open_files(f"file://{plan.model.path}", {})
    assert files
    try:
        found = inspect(plan.model.uri, files)
    except Refusal as refusal:
        raise BY_REASON[refusal.reason](str(refusal)) from None
    try:
        refuse(spec, base=found.base)
    except PlanError as error:
        raise ConfigError(str(error)) from None
    if found.facts is None:
        return None
    device = gpus[0] if gpus else machine_memory() // plan.processes_per_node
    if spec.memory.per_device is not None:
        device = int(amount(spec.memory.per_device))
    wanted = spec.distribution
    return choose(plan, found.facts, wanted.strategy, wanted.offload, device, cpu=not gpus)


def gpu_memory() -> list[int]:
    """Bytes of each GPU. NVIDIA's tool is asked, which takes less than to import torch."""
    try:
        asked = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, check=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return [int(line) << 20 for line in asked.stdout.split() if line.isdigit()]


def machine_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its control group's limit (cgroups v2)."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return whole
    return min(whole, int(limit)) if limit.isdigit() else whole
