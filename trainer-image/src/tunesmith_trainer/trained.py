"""How what a training made is asked: by its method, and by the chat template with what that is told beside messages.
It is read from manifests: a FineTuneJob's holds the plan, a MergeJob's what the adapters agree on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from tunesmith.api.base import Model
from tunesmith.api.training import Truncation
from tunesmith.training.plan import ChatPlan, MergeAdapterPlan, MethodPlan, Place, TrainPlan

from tunesmith_trainer.chat import DEFAULT
from tunesmith_trainer.errors import ConfigError, ModelError
from tunesmith_trainer.model import manifest_of

TEMPLATE = "chat_template.jinja"
FIELD = "training"
"""Of a MergeJob's manifest."""
Kind = TypeVar("Kind", bound=Model)


class Trained(Model):
    """What of a training decides how its model is asked."""

    method: MethodPlan
    chat_template: ChatPlan = ChatPlan()
    max_length: int
    truncation: Truncation = "Right"

    @classmethod
    def by(cls, plan: TrainPlan) -> Trained:
        """What a plan's training makes."""
        training = plan.training
        return cls(
            method=plan.method,
            chat_template=plan.chat_template,
            max_length=training.max_length,
            truncation=training.truncation,
        )


def plan_of(place: Place) -> TrainPlan | None:
    """The plan of the FineTuneJob that made an artefact. Raises ModelError."""
    content = manifest_of(place).get("plan")
    return read(TrainPlan, content, place) if content and content.get("kind") == "FineTuneJob" else None


def trained_as(place: Place) -> Trained | None:
    """How what lies at a place was trained; None where that is not known. Raises ModelError."""
    if plan := plan_of(place):
        return Trained.by(plan)
    content = manifest_of(place).get(FIELD)
    return read(Trained, content, place) if content else None


def read(kind: type[Kind], content: Any, place: Place) -> Kind:
    """A part of a manifest."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ModelError(f"{place.uri}: the plan in its manifest.json cannot be read: {error}") from None


def last_step(adapters: Sequence[MergeAdapterPlan]) -> list[tuple[str, MergeAdapterPlan]]:
    """(field, adapter) of those that were trained last. What they were trained with is what the merged model is asked
    with.
    """
    last = max(adapter.step for adapter in adapters)
    return [(f"adapters[{index}]", one) for index, one in enumerate(adapters) if one.step == last]


def merged_as(adapters: Sequence[MergeAdapterPlan]) -> tuple[Trained | None, list[str]]:
    """(how a merged model is asked, the fields of chatTemplate that this leaves open, as the adapters of the last step
    differ in them). Adapters without a manifest say nothing.
    """
    found = [one for _, adapter in last_step(adapters) if (one := trained_as(adapter))]
    if not found:
        return None, []
    chats, default = [one.chat_template for one in found], ChatPlan()
    open_ = [
        name for name in ("system", "arguments") if any(getattr(c, name) != getattr(chats[0], name) for c in chats)
    ]
    chat = chats[0].model_copy(update={name: getattr(default, name) for name in open_})
    return found[0].model_copy(update={"chat_template": chat}), open_


def merged_template(adapters: Sequence[MergeAdapterPlan], base: Any) -> Any:
    """The chat template that the adapters of the last step were trained with: what lies beside them, else the base's.
    Raises ConfigError where they differ, as a model has one.
    """
    paths = [(f"{field} {one.uri}", Path(one.path) / TEMPLATE) for field, one in last_step(adapters)]
    found = [(name, path.read_text() if path.is_file() else base) for name, path in paths]
    (first, template), *others = found
    for name, other in others:
        if other != template:
            raise ConfigError(
                f"spec.adapters: {first} was trained with {told(template, base)}, and {name} with {told(other, base)}, "
                "but a model has one chat template: give the adapter whose template is to stay a higher step than the "
                "others (adapters[].step; the updates of steps add up), or merge each by a MergeJob of its own"
            )
    return template


def told(template: Any, base: Any) -> str:
    """A chat template, for people."""
    if template == base:
        return "the base's own chat template" if base else "no chat template"
    return "chatTemplate.type Default" if template == DEFAULT else f"a template that begins {template[:40]!r}"
