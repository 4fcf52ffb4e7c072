"""How a FineTuneJob turns conversations into text."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tunesmith.api.base import Model


class ChatTemplate(Model):
    """The chat template, and what it is told beside the messages."""

    type: Literal["Model", "Default"] = "Model"
    """Model: the model's own. Default: for base models without one, turns below headings like `### User:`; it is saved
    with what is trained."""
    system: Annotated[str, Field(min_length=1, max_length=65_536)] | None = None
    """System prompt of rows that have none. Default: what the template itself writes where there is none."""
    arguments: Annotated[
        dict[str, Any], Field(max_length=16, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})
    ] = {}
    """Arguments of the template, for example `enable_thinking: false`. A row's own column `chat_template_kwargs` comes
    first."""
