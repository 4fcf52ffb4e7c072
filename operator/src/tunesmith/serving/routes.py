"""What a gateway should do (operator -> gateway), and what it saw (gateway -> operator).

The routes are the key `routes.json` of the ConfigMap `<deployment>-adapters`, mounted into the gateway's pods; the
operator also sends them to `PUT :9500/routes` (bearer: the admin token), so that a change lands at once. The higher
revision wins. Which pod serves what is not in them: the gateway asks the agents, so that it goes on with the operator
down.
"""

from __future__ import annotations

from tunesmith.api.base import Model

CANARY = "@canary"
"""Ends the name under which engines serve the version of an adapter that is tried on a part of the requests."""

ROUTES_FOLDER = "/etc/tunesmith/routes"
ROUTES_FILE = f"{ROUTES_FOLDER}/routes.json"


def canary_name(adapter: str) -> str:
    """Under which name the engines serve the version of an adapter that is being tried."""
    return adapter + CANARY


class Split(Model):
    """The requests for one adapter, of which a part goes to the version that is being tried."""

    percent: int
    """Of the requests, to that version."""
    trial: str
    """What requests are counted under. Each step of each trial has its own, so that its count begins at nothing."""


class Routes(Model):
    """What a gateway should do."""

    revision: int
    model_name: str
    """The base's name."""
    adapters: list[str] = []
    """Names that clients may ask for."""
    splits: dict[str, Split] = {}
    """By adapter."""
    hold_seconds: float = 300.0
    """How long a request may wait for a pod."""
    max_held: int = 256
    """How many requests may wait, in each gateway's pod."""


class Count(Model):
    """Requests that are over."""

    requests: int = 0
    errors: int = 0
    """Answered with a 5xx, or cut short by the engine."""


class Trial(Model):
    """What became of the requests during one step of a trial, by the version that answered them."""

    new: Count = Count()
    old: Count = Count()


class GatewayStatus(Model):
    """`GET :9500/status` of a gateway. Everything in it begins anew when the gateway does."""

    revision: int
    pod_uid: str = ""
    held: int = 0
    """Requests that wait for a pod."""
    in_flight: int = 0
    """Requests that are being answered."""
    idle_seconds: float = 0.0
    """Since the last request ended, or the gateway began."""
    trials: dict[str, Trial] = {}
