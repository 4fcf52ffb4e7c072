"""A new version of an adapter on a part of the requests: when it gets more of them, all, or is taken back.

What is known of a trial is in the ConfigMap of the desired adapters (`Trial`), and what became of its requests in the
gateways. A gateway that restarts begins to count anew: then the decision takes longer, and is no other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from tunesmith.api.modeldeployment import Canary
from tunesmith.serving.contract import Trial, Version
from tunesmith.serving.routes import Count, GatewayStatus
from tunesmith.serving.routes import Trial as Counted

Verdict = tuple[Literal["Wait", "Next", "Back"], str, str]
"""(what to do, reason, message)"""


def identity(canary: Canary, uri: str, stable: str) -> str:
    """What makes a trial another one: its version, the version beside it, and its conditions."""
    conditions = canary.model_copy(update={"uri": uri, "fine_tune_job_ref": None, "secret_ref": None})
    return hashlib.sha256(f"{stable} {conditions.model_dump_json()}".encode()).hexdigest()[:12]


def key(adapter: str, trial: Trial) -> str:
    """What the gateways count the requests of this step under."""
    return f"{adapter}.{trial.id}.{trial.step}"


def counted(gateways: Iterable[GatewayStatus], name: str) -> Counted:
    """The requests of a step, of all gateways."""
    found = [trial for one in gateways if (trial := one.trials.get(name))]
    return Counted(new=_sum([one.new for one in found]), old=_sum([one.old for one in found]))


def judge(canary: Canary, found: Counted, seconds: float) -> Verdict:
    """What follows of a step that has lasted this long.

    A version goes back as soon as its errors are too many even if no more were to come: more than are allowed of
    `minRequests`, or of what it has answered. Where the old version fails as often, it is not the new one's fault.
    """
    new, old = found.new, found.old
    allowed = canary.max_error_percent / 100 * max(new.requests, canary.min_requests)
    said = f"{new.errors} of {new.requests} requests failed"
    if new.errors > allowed:
        if new.errors * old.requests > old.errors * new.requests or not old.requests:
            return "Back", "TooManyErrors", f"{said}; allowed are {canary.max_error_percent} percent"
        beside = f"of the old version's meanwhile {old.errors} of {old.requests}"
        return "Wait", "BothFail", f"{said}, and {beside}"
    if new.requests < canary.min_requests:
        return "Wait", "WaitingForRequests", f"{said}; {canary.min_requests} are needed"
    if seconds < canary.window_seconds:
        return "Wait", "Watching", f"{said} in {seconds:.0f} of {canary.window_seconds} s"
    return "Next", "Passed", said


def follow(
    canary: Canary,
    version: Version,
    stable: str,
    before: Trial | None,
    *,
    adapter: str,
    serving: bool,
    refusal: tuple[str, str] | None,
    replaced: bool,
    gateways: Iterable[GatewayStatus],
    now: datetime,
    stamp: str,
) -> Trial:
    """The trial after this look at it.

    stable: address of the version that it is tried beside. serving: whether all pods that should serve the new version
    do. refusal: (reason, message) where one cannot. replaced: whether all pods serve it under the adapter's own
    name.
    """
    fresh = Trial(id=identity(canary, version.uri, stable), version=version, since=stamp)
    if version.uri == stable:
        return fresh.model_copy(update={"state": "Promoted", "message": "it is the adapter's own version"})
    if before is None or before.id != fresh.id:
        return fresh
    trial = before.model_copy(update={"version": version})

    def to(state: str, reason: str, message: str, **more: object) -> Trial:
        return trial.model_copy(update={"state": state, "reason": reason, "message": message[:1024], **more})

    if trial.state in ("RolledBack", "Promoted"):
        return trial
    if refusal:
        return to("RolledBack", *refusal)
    if trial.state == "Promoting":
        return to("Promoted", "Promoted", "it has taken the old version's place", since=stamp) if replaced else trial
    if trial.state == "Loading":
        if not serving:
            return trial
        return to("Running", "Watching", "it gets its first requests", since=stamp)
    seconds = (now - datetime.fromisoformat(trial.since)).total_seconds()
    verdict, reason, message = judge(canary, counted(gateways, key(adapter, trial)), seconds)
    if verdict == "Back":
        percent = canary.percents[trial.step]
        return to("RolledBack", reason, f"at {percent} percent of the requests: {message}", since=stamp)
    if verdict == "Wait":
        # Without the figures, which are in the status: each change here is a write.
        return trial if trial.reason == reason else to("Running", reason, "")
    if trial.step + 1 < len(canary.percents):
        return to("Running", "Watching", "", step=trial.step + 1, since=stamp)
    return to("Promoting", "Passed", message, since=stamp)


def percent(canary: Canary, trial: Trial) -> int:
    """Of the requests, to the new version now."""
    if trial.state == "Promoting":
        return 100
    return canary.percents[trial.step] if trial.state == "Running" else 0


def _sum(counts: list[Count]) -> Count:
    return Count(requests=sum(one.requests for one in counts), errors=sum(one.errors for one in counts))
