"""Datasets of a FineTuneJob: where rows are, and how they are read."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tunesmith.api.base import Model, SecretRef, Uri

ColumnName = Annotated[str, Field(min_length=1, max_length=128)]


class Columns(Model):
    """Names of a dataset's columns, where they are not the usual ones."""

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


class Dataset(Model):
    """Rows to learn from: JSONL with `messages`, alpaca (`instruction`, `input`, `output`), `query` and
    `response`, or `text` rows. Which of them it is, is found out from the first row.
    """

    uri: Uri
    """Address of a file, or of a folder of files, as in spec.model.uri."""
    secret_ref: SecretRef | None = None
    """Credentials for `uri`."""
    columns: Columns | None = None
    """Names of columns, where they are not found by themselves."""
    sample: Annotated[int, Field(ge=1, le=1_000_000_000)] | None = None
    """Use this many rows, drawn with training.seed. More than there are repeats rows. Default: all."""
    variables: Annotated[dict[str, Annotated[str, Field(max_length=1024)]], Field(max_length=32)] | None = None
    """Texts that replace `{{KEY}}` in every row."""
