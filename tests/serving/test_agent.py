"""The agent and the guard with a real vLLM."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.trainer, pytest.mark.timeout(900)]


def test_the_mounted_state_is_served_and_answers_as_peft_does(pod, forge):
    first = next(iter(pod.adapters.values()))
    assert pod.say("first") == forge.say(pod.base, first["path"])
    assert pod.say("base") == forge.say(pod.base, None)
    assert pod.say("first") != pod.say("base")
