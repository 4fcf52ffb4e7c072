"""`tunesmith-trainer export`: a folder in, another one out."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from tunesmith.api.quantization import Quantization
from tunesmith.schema.walk import schema_of
from tunesmith.training.plan import Place
from tunesmith.training.planning import quantization_plan

from tunesmith_trainer.errors import ConfigError
from tunesmith_trainer.local.checking import broken_rules
from tunesmith_trainer.model import check_files


def given(**values: Any) -> dict[str, Any]:
    """Those that are set."""
    return {name: value for name, value in values.items() if value is not None}


def calibration(data: Path | None, how: dict[str, Any], rows: dict[str, Any]) -> dict[str, Any] | None:
    """`spec.quantization.calibration` of a file or folder on this machine."""
    if data is None:
        if how | rows:
            raise ConfigError("--algorithm, --sample and --max-length are only with --data")
        return None
    if not data.exists():
        raise ConfigError(f"--data {data}: it is not there")
    return {**how, "dataset": {"uri": f"file://{data.resolve()}", **rows}}


def export_folder(model: Path, asked: dict[str, Any], out: Path) -> float:
    """Export the model in a folder to the folder `out`, which is seen only when it is whole and has passed the
    comparison, as `spec.quantization` of a MergeJob would say it. Returns the error of the logits.
    """
    if out.exists():
        raise ConfigError(f"--out {out}: it is there already")
    schema = schema_of("MergeJob")["properties"]["spec"]["properties"]["quantization"]
    try:
        spec = Quantization.model_validate(asked)
    except ValidationError as error:
        raise ConfigError("; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())) from None
    if broken := list(broken_rules(schema, spec.body(), "quantization")):  # with its defaults, as an API server sees it
        raise ConfigError("; ".join(broken))
    plan = quantization_plan(spec)
    source = Place(uri=str(model), path=str(model))
    check_files(source)
    from tunesmith_trainer.export import export

    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        error = export(source, plan, temporary)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return error
