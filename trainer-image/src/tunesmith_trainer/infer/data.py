"""Rows to infer on: those that the run kept aside to evaluate on, those of another dataset, or what was asked on the
command line. All are read as training reads them; what is only there to learn from may be missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from tunesmith.api.methods import MethodType
from tunesmith.training.plan import DatasetPlan, TrainPlan

from tunesmith_trainer.data import MESSAGES, QUERY, TEXT, Reader, Row, first
from tunesmith_trainer.errors import ConfigError, DataError
from tunesmith_trainer.files import Split, data_files, read_file
from tunesmith_trainer.forms import LABEL, NEGATIVE, POSITIVE
from tunesmith_trainer.infer.subject import Subject, Task
from tunesmith_trainer.local.addresses import Here
from tunesmith_trainer.reading import read_plan
from tunesmith_trainer.trained import plan_of

VALIDATION = "validation"
SPLIT: Split = "validation"
"""Of a folder whose files say what they are for."""
WHOLE: Mapping[Task, tuple[MethodType, tuple[str, ...]]] = {
    "Classify": ("Classification", LABEL),
    "Score": ("RewardModel", ("rejected", "rejected_response", "rejected_messages")),
    "Rerank": ("Reranker", (*POSITIVE, *NEGATIVE)),
    "Embed": ("Embedding", POSITIVE),
}  # fmt: skip
"""The method whose rows a task reads whole, and the columns without which they are questions only."""
MAPPED: Mapping[Task, str] = {"Classify": "label", "Score": "rejected", "Rerank": "response", "Embed": "response"}
"""What of a dataset's `columns` may name that column otherwise."""


def method_for(task: Task, columns: Mapping[str, Any], dataset: DatasetPlan) -> MethodType:
    """As whose row these columns of a dataset are read: an answer, a label or documents may be there or not."""
    if task in WHOLE:
        method, names = WHOLE[task]
        mapped = getattr(dataset.columns, MAPPED[task])
        if task == "Rerank" or any(columns.get(name) is not None for name in (*names, mapped)):
            return method
    if task != "Generate" and first(TEXT, dict(columns)) and not first([*MESSAGES, *QUERY], dict(columns)):
        return "PreTraining"
    return "GKD"


def one(task: Task, columns: dict[str, Any], folder: Path = Path()) -> Row:
    """What was asked, as a row."""
    dataset = DatasetPlan(uri="asked", path="")
    return Reader("asked", dataset, method_for(task, columns, dataset)).row("asked", columns, folder)


def rows(subject: Subject, source: str, here: Here, limit: int | None) -> list[Row]:
    """The rows of `validation`, or of the dataset at a path or an address, `limit` at most. Raises DataError."""
    if source == VALIDATION:
        return kept_aside(subject, here)[:limit]
    path = here.path(source, "dataset") if "://" in source else Path(source)
    dataset = DatasetPlan(uri=source, path=str(path))
    found = list(islice(read(dataset, subject.task), limit))
    if not found:
        raise DataError(f"{source}: there are no rows in it")
    return found


def read(dataset: DatasetPlan, task: Task, label: str = "data") -> Iterator[Row]:
    """The rows of a dataset, in its order. `label` names it in errors."""
    for path, uri in data_files(dataset, label, SPLIT):
        with closing(read_file(path, uri, uri)) as found:
            for number, columns in found:
                if isinstance(columns, DataError):
                    raise columns
                reader = Reader(label, dataset, method_for(task, columns, dataset))
                yield reader.row(f"{uri} row {number}", columns, path.parent)


def kept_aside(subject: Subject, here: Here) -> list[Row]:
    """The very rows that the training kept aside."""
    plan = plan_of(subject.made)
    if plan is None or not (plan.validation.split or plan.validation.datasets):
        raise ConfigError(
            "--data validation: the job that made this kept no rows aside (spec.validation): give a dataset"
        )
    return list(read_plan(localized(plan, here)).validation)


def localized(plan: TrainPlan, here: Here) -> TrainPlan:
    """A plan whose datasets are found on this machine."""

    def there(dataset: DatasetPlan) -> DatasetPlan:
        path = Path(dataset.path)
        if not path.exists() and not dataset.uri.startswith("file://"):
            path = here.path(dataset.uri, "dataset")
        if not path.exists():
            raise DataError(f"{dataset.uri}: it is not here ({path}): give the rows by --data, or --claims")
        return dataset.model_copy(update={"path": str(path)})

    kept = plan.validation.model_copy(update={"datasets": [there(one) for one in plan.validation.datasets]})
    local = plan.training.model_copy(update={"data_cache": "Local"})
    return plan.model_copy(
        update={"datasets": [there(one) for one in plan.datasets], "validation": kept, "training": local}
    )
