"""Datasets: where rows are, and how they are read."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from tunesmith.api.base import ATOMIC, Model, SecretRef, Uri, rule, rules

ColumnName = Annotated[str, Field(min_length=1, max_length=128)]


Role = Literal["system", "user", "assistant", "tool"]
GlobPattern = Annotated[str, Field(min_length=1, max_length=256)]


class Columns(Model):
    """Names of a dataset's columns, where they are not the usual ones, and of the parts of a message."""

    messages: ColumnName | None = None
    """Column with the list of messages, each a role and a content."""
    query: ColumnName | None = None
    """Column with the user's turn."""
    response: ColumnName | None = None
    """Column with the answer."""
    system: ColumnName | None = None
    """Column with the system prompt."""
    text: ColumnName | None = None
    """Column with plain text, for pre-training."""
    rejected: ColumnName | None = None
    """Column with the worse answer."""
    label: ColumnName | None = None
    """Column with the label."""
    tools: ColumnName | None = None
    """Column with the tools that the model may call."""
    role: ColumnName | None = None
    """Key of a message with who speaks. Default: `role`, else `from`."""
    content: ColumnName | None = None
    """Key of a message with what is said. Default: `content`, else `value`."""
    roles: Annotated[dict[str, Role], Field(max_length=16)] | None = None
    """What the dataset's own names of roles stand for, for example `Customer: user`."""


class Rows(Model):
    """Rows of JSONL, JSON, CSV, TSV, Parquet or Arrow with `messages`, alpaca (`instruction`, `input`, `output`),
    `query` and `response`, or `text`. Which of them it is, is found out from each row.
    """

    uri: Uri
    """Address of a file, or of a folder of files, as in spec.model.uri."""
    secret_ref: SecretRef | None = None
    """Credentials for `uri`."""
    subset: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Of a repository with several sets: the name of one, which its README's `configs` declare, or a folder."""
    split: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """Split of a folder or repository: files under a name that begins with it are taken. Default: `train` to learn
    from, otherwise the first of `validation`, `val`, `dev`, `eval` and `test`, if there is such a name; else all
    files."""
    files: Annotated[list[GlobPattern], Field(min_length=1, max_length=32, json_schema_extra=ATOMIC)] | None = None
    """Files of a folder, as patterns: `2024/*.parquet`, `**/part-*.jsonl`. Then `split` is not looked for."""
    columns: Columns | None = None
    """Names of columns, where they are not found by themselves."""
    variables: Annotated[dict[str, Annotated[str, Field(max_length=1024)]], Field(max_length=32)] | None = None
    """Texts that replace `{{KEY}}` in every row."""


class Dataset(Rows):
    """Rows to learn from: JSONL, JSON, CSV, TSV, Parquet or Arrow with `messages`, alpaca (`instruction`, `input`,
    `output`), `query` and `response`, or `text`. Which of them it is, is found out from each row.
    """

    sample: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """Use this many rows, drawn with training.seed. More than there are repeats rows. Default: all."""
    weight: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """How often its rows are drawn, against the weights of the other datasets (default 1). Where any dataset has one,
    datasets are mixed as training.stoppingStrategy says; else they are put one after the other."""
    strict: bool = True
    """false: rows that cannot be read are left out, counted, and listed in the run's `dropped.jsonl`."""


class EarlyStopping(Model):
    """When to stop, as nothing is won any more."""

    patience: Annotated[int, Field(ge=1, le=10_000)] = 3
    """Evaluations in a row, none of which is better than the best before them."""
    min_delta: Annotated[float, Field(ge=0, le=1_000_000)] = 0.0
    """By how much one must be better to count."""


class Validation(Model):
    """Rows that nothing is learned from: the model is evaluated on them."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule("has(self.datasets) != has(self.split)", "exactly one of datasets and split must be set"),
            rule(
                "!has(self.split) || self.split < 1.0 || self.split == double(int(self.split))",
                "split must be below 1, a part of the rows, or a whole number of rows",
            ),
        )
    )
    datasets: Annotated[list[Dataset], Field(min_length=1, max_length=8, json_schema_extra=ATOMIC)] | None = None
    """Datasets of their own, read as spec.datasets are. Of a folder, files under a name that begins with `validation`,
    `val`, `dev`, `eval` or `test` are taken, the first of these that is there; else all."""
    split: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    """Rows that are taken out of spec.datasets, drawn with training.seed: below 1 it is a part of each dataset, for
    example 0.01; from 1 on their number in all."""
    every_steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Optimizer steps between two evaluations. Default: one at the end of each epoch. The last step is
    evaluated, too."""
    metric: Annotated[str, Field(min_length=1, max_length=128)] = "loss"
    """What the best checkpoint is chosen by: `loss`, or a metric of the method, for example `accuracy`."""
    direction: Literal["Minimize", "Maximize"] | None = None
    """Which values of `metric` are better. Default: Minimize for `loss` and metrics with `error` in their name,
    Maximize for others."""
    publish: Literal["Best", "Last"] = "Best"
    """The weights that become the artefact: those of the best evaluation, or of the last step."""
    early_stopping: EarlyStopping | None = None
    """Stop before the last step. Default: never."""
