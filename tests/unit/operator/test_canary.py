"""When a new version gets more of the requests, all of them, or is taken back."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from tunesmith.api.modeldeployment import Canary
from tunesmith.decide.canary import judge
from tunesmith.decide.modeldeployment import decide
from tunesmith.decide.world import Decision
from tunesmith.serving.contract import AgentStatus, ObservedAdapter
from tunesmith.serving.routes import Count, GatewayStatus, Routes, Trial
from tunesmith.settings import Settings
from unit.operator.builders import NOW, children, mine, pod, serve, world

SETTINGS = Settings()
OLD, NEW = "pvc://store/adapters/1", "pvc://store/adapters/2"


@pytest.mark.parametrize(
    ("new", "old", "seconds", "verdict", "reason"),
    [
        ((50, 0), (450, 0), 300, "Next", "Passed"),
        ((50, 0), (450, 0), 299, "Wait", "Watching"),
        ((49, 0), (450, 0), 9999, "Wait", "WaitingForRequests"),
        ((0, 0), (0, 0), 9999, "Wait", "WaitingForRequests"),
        ((50, 2), (450, 0), 300, "Next", "Passed"),
        ((50, 3), (450, 0), 300, "Back", "TooManyErrors"),
        # Too many of the 50 that are needed, whatever the others will be.
        ((3, 3), (27, 0), 1, "Back", "TooManyErrors"),
        ((3, 2), (27, 0), 1, "Wait", "WaitingForRequests"),
        ((1000, 50), (9000, 0), 300, "Next", "Passed"),
        ((1000, 51), (9000, 0), 300, "Back", "TooManyErrors"),
        # It is not the new version's fault.
        ((100, 50), (900, 450), 300, "Wait", "BothFail"),
        ((100, 51), (900, 450), 300, "Back", "TooManyErrors"),
        # All requests are its own: there is nothing to compare with.
        ((100, 50), (0, 0), 300, "Back", "TooManyErrors"),
    ],
)
def test_a_step(new: tuple[int, int], old: tuple[int, int], seconds: float, verdict: str, reason: str) -> None:
    counts = [Count(requests=requests, errors=errors) for requests, errors in (new, old)]
    found = judge(Canary(uri=NEW), Trial(new=counts[0], old=counts[1]), seconds)
    assert found[:2] == (verdict, reason)


def test_no_error_is_allowed_where_none_is() -> None:
    strict = Canary(uri=NEW, max_error_percent=0)
    assert judge(strict, Trial(new=Count(requests=1, errors=1)), 0)[0] == "Back"


class Deployment:
    """A deployment of two pods and two gateways. What is decided comes true at the next look."""

    def __init__(self, **canary: Any) -> None:
        self.canary: dict[str, Any] | None = {"uri": NEW, "percents": [10, 50], "windowSeconds": 60, **canary}
        self.uri = OLD
        self.now = NOW
        self.config: dict[str, Any] | None = None
        self.status: dict[str, Any] = {}
        self.broken: set[str] = set()
        self.counts: list[dict[str, Trial]] = [{}, {}]
        self.generation = 3

    def look(self, seconds: float = 0) -> Decision:
        self.now += timedelta(seconds=seconds)
        adapter = {"name": "a", "uri": self.uri, **({"canary": self.canary} if self.canary else {})}
        resource = serve(self.status, adapters=[adapter], gateway={}, replicas=2)
        resource["metadata"]["generation"] = self.generation
        pods = [pod(f"p{n}", phase="Running") for n in range(2)]
        agents = {f"p{n}": self.agent(f"u-p{n}") for n in range(2)}
        gateways = {f"g{n}": GatewayStatus(revision=1, trials=self.counts[n]) for n in range(2)}
        known = children(self.config) if self.config else {}
        decision = decide(
            world(resource, now=self.now, children=known, pods=tuple(pods), agents=agents, gateways=gateways), SETTINGS
        )
        assert decision
        body = next(one for one in decision.apply if one["kind"] == "ConfigMap")
        self.config = mine("ConfigMap", "x-adapters", data=body["data"])
        self.status = decision.status.body()
        return decision

    def agent(self, uid: str) -> AgentStatus:
        """It serves what it was told, unless that is broken."""
        adapters = []
        for one in json.loads(self.config["data"]["state.json"])["adapters"] if self.config else []:
            if one["uri"] in self.broken:
                failed = {"state": "Failed", "reason": "CheckFailed", "message": "damaged", "permanent": True}
                adapters.append(ObservedAdapter(name=one["name"], uri=one["uri"], **failed))
            else:
                adapters.append(ObservedAdapter(name=one["name"], uri=one["uri"], state="Ready", digest=one["uri"][-1]))
        return AgentStatus(revision=1, pod_uid=uid, engine="Ready", ready=True, adapters=adapters)

    @property
    def routes(self) -> Routes:
        assert self.config
        return Routes.model_validate_json(self.config["data"]["routes.json"])

    def answered(self, requests: int, errors: int = 0) -> None:
        """Each of the gateways has passed so many requests to the new version in this step."""
        [split] = self.routes.splits.values()
        new, old = Count(requests=requests, errors=errors), Count(requests=9 * requests)
        self.counts = [{split.trial: Trial(new=new, old=old)} for _ in range(2)]

    @property
    def desired(self) -> dict[str, str]:
        assert self.config
        return {one["name"]: one["uri"] for one in json.loads(self.config["data"]["state.json"])["adapters"]}

    @property
    def said(self) -> tuple[str, str | None, int]:
        found = self.status["adapters"][0]["canary"]
        return found["state"], found.get("reason"), found["percent"]

    def running(self) -> Deployment:
        self.look()
        self.look()
        assert self.said == ("Running", "Watching", 10)
        return self


def test_the_new_version_is_loaded_beside_the_old_one_before_it_gets_requests() -> None:
    one = Deployment()
    one.look()
    assert one.desired == {"a": OLD, "a@canary": NEW}
    assert one.routes.splits == {}
    assert one.said == ("Loading", None, 0)
    one.look()
    one.look()
    assert one.routes.splits["a"].percent == 10
    assert one.routes.adapters == ["a"], "clients know nothing of it"
    assert [a["name"] for a in one.status["adapters"]] == ["a"]


def test_it_gets_more_of_the_requests_step_by_step_and_then_takes_the_old_ones_place() -> None:
    one = Deployment().running()
    first = one.routes.splits["a"].trial
    one.look(60)
    assert one.said[1] == "WaitingForRequests"
    one.answered(25)
    one.look()
    assert one.said == ("Running", "Watching", 50)
    assert one.routes.splits["a"].trial != first, "each step counts its own"
    one.look(60)
    assert one.said == ("Running", "WaitingForRequests", 50), "what the first step counted is no help"
    one.answered(25)
    one.look()
    assert one.said == ("Promoting", "Passed", 100)
    for _ in range(5):  # pod after pod, while all requests go to it under its own name
        assert one.desired["a@canary"] == NEW
        assert one.routes.splits["a"].percent == 100
        one.look()
        if one.said[0] == "Promoted":
            break
    assert one.said == ("Promoted", "Promoted", 0)
    assert one.desired == {"a": NEW}
    assert one.routes.splits == {}
    one.look(9999)
    assert one.desired == {"a": NEW}, "and stays there"


def test_after_that_its_address_is_moved_and_nothing_changes() -> None:
    one = Deployment(percents=[100], minRequests=1, windowSeconds=1)
    one.look()
    one.look()
    one.answered(1)
    for _ in range(6):
        one.look(1)
    assert one.said[0] == "Promoted"
    one.uri, one.generation = NEW, 4
    one.look()
    assert one.desired == {"a": NEW}
    assert one.said[0] == "Promoted"
    one.canary, one.generation = None, 5
    one.look()
    assert one.desired == {"a": NEW}
    assert "canary" not in one.status["adapters"][0]


def test_a_version_that_fails_is_taken_back_at_once_and_stays_so() -> None:
    one = Deployment().running()
    one.answered(2, errors=2)
    one.look()
    assert one.said == ("RolledBack", "TooManyErrors", 0)
    assert "4 of 4 requests failed" in one.status["adapters"][0]["canary"]["message"]
    assert one.desired == {"a": OLD}
    assert one.routes.splits == {}
    one.counts = [{}, {}]
    one.generation = 9  # an autoscaler's write, for example
    one.look(9999)
    assert one.said[0] == "RolledBack"
    assert one.desired == {"a": OLD}


def test_other_conditions_are_another_try() -> None:
    one = Deployment().running()
    one.answered(2, errors=2)
    one.look()
    assert one.canary
    one.canary["maxErrorPercent"] = 99
    one.look()
    assert one.said[0] == "Loading"
    assert one.desired == {"a": OLD, "a@canary": NEW}


def test_a_version_that_pods_refuse_is_taken_back_with_their_reason() -> None:
    one = Deployment()
    one.broken.add(NEW)
    for _ in range(3):
        one.look()
    assert one.said == ("RolledBack", "CheckFailed", 0)
    assert one.status["adapters"][0]["canary"]["message"] == "damaged"
    assert one.status["adapters"][0]["state"] == "Ready", "the adapter itself is served"


def test_gateways_that_restart_delay_the_decision_and_change_it_in_no_way() -> None:
    one = Deployment().running()
    one.answered(25)
    one.counts[0] = {}
    one.look(60)
    assert one.said == ("Running", "WaitingForRequests", 10)
    one.answered(25)
    one.look()
    assert one.said == ("Running", "Watching", 50)


def test_an_operator_that_restarts_goes_on_from_the_config_map() -> None:
    one = Deployment().running()
    one.status = {}  # not even the status is needed
    one.look()
    assert one.said == ("Running", "WaitingForRequests", 10)


def test_an_idle_look_changes_nothing() -> None:
    one = Deployment().running()
    one.answered(5)
    one.look(1)
    once = one.config
    one.answered(6)
    one.look(1)
    assert one.config == once, "counts are no news"


def test_without_a_canary_the_old_version_is_served_on() -> None:
    one = Deployment().running()
    one.canary = None
    one.look()
    assert one.desired == {"a": OLD}
    assert one.routes.splits == {}
