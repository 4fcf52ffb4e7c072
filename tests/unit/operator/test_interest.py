"""Who is looked at when a resource changes that others refer to."""

from __future__ import annotations

from typing import Any

from tunesmith.api.kinds import MODELS
from tunesmith.handlers.interest import Interest
from tunesmith.reconcile import Key
from unit.operator.builders import merge, serve

X = Key("MergeJob", "ns", "x")
CHAT = Key("ModelDeployment", "ns", "chat")
TUNED = Key("FineTuneJob", "ns", "tuned")
LABELLED = {"adapterSelector": {"matchLabels": {"team": "a"}}}


def keep(interest: Interest, key: Key, body: dict[str, Any]) -> None:
    interest.keep(key, MODELS[key.kind].model_validate(body))


def test_whoever_refers_to_it_by_name_or_labels_is_looked_at() -> None:
    interest = Interest()
    keep(interest, X, merge())
    keep(interest, CHAT, serve(**LABELLED))
    assert list(interest.of(TUNED, {})) == [X]
    assert list(interest.of(TUNED, {"team": "a", "more": "b"})) == [X, CHAT]
    assert list(interest.of(TUNED._replace(namespace="other"), {"team": "a"})) == []
    assert list(interest.of(TUNED._replace(kind="MergeJob"), {"team": "a"})) == []


def test_a_spec_that_refers_to_something_else_is_of_no_interest_to_what_it_was() -> None:
    interest = Interest()
    keep(interest, CHAT, serve(adapters=[{"name": "a", "fineTuneJobRef": {"name": "tuned"}}], **LABELLED))
    keep(interest, CHAT, serve(adapters=[{"name": "a", "fineTuneJobRef": {"name": "later"}}]))
    assert list(interest.of(TUNED, {"team": "a"})) == []
    assert list(interest.of(TUNED._replace(name="later"), {})) == [CHAT]


def test_nothing_is_kept_of_what_is_gone() -> None:
    interest = Interest()
    for number in range(100):
        keep(interest, X._replace(name=f"x{number}"), merge(adapters=[{"fineTuneJobRef": {"name": f"t{number}"}}]))
        keep(interest, CHAT, serve(**LABELLED))
        interest.forget(X._replace(name=f"x{number}"))
        interest.forget(CHAT)
    assert not any(vars(interest).values())
