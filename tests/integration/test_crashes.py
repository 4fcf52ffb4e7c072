"""The operator killed between any two writes, and before and after each: the end is always the same."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from integration.harness import Kubectl, reconciler, serve, train
from tunesmith.kube.client import Client, Object
from tunesmith.reconcile import Key


class Killed(BaseException):
    """The process is gone; no handler may see it."""


class MortalClient(Client):
    """Dies at the n-th write, before it or after it. Counts writes."""

    def __init__(self, live: Client, dies_at: int | None = None, after: bool = False) -> None:
        super().__init__()
        self._api = live._api
        self.writes = 0
        self._dies_at, self._after = dies_at, after

    async def _call(self, method: str, path: str, body: Object | None = None, **options: Any) -> Object:
        if method == "GET":
            return await super()._call(method, path, body, **options)
        self.writes += 1
        if self.writes == self._dies_at and not self._after:
            raise Killed
        result = await super()._call(method, path, body, **options)
        if self.writes == self._dies_at:
            raise Killed
        return result


async def settle(client: MortalClient, http: aiohttp.ClientSession, key: Key, passes: int = 3) -> None:
    for _ in range(passes):
        await reconciler(client, http).reconcile(key)


def snapshot(kubectl: Kubectl, kind: str, name: str) -> dict[str, Any]:
    """What a user would call the state, without names of pods and times."""
    resource = kubectl.get(kind, name)
    status = resource.get("status", {})
    return {
        "children": {k: kubectl.names(k) for k in ("job", "configmap", "service", "secret", "deployment")},
        "conditions": [(c["type"], c["status"]) for c in status.get("conditions", [])],
        "spec": resource["spec"],
    }


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("kind", "body"),
    [("FineTuneJob", train("x", "hang", nodes=2)), ("ModelDeployment", serve("x", replicas=2))],
    ids=["train", "serve"],
)
async def test_killed_at_any_write_it_ends_in_the_same_state(
    kubectl: Kubectl, client: Client, http: aiohttp.ClientSession, kind: str, body: dict[str, Any], after: bool
) -> None:
    key = Key(kind, kubectl.namespace, "x")
    kubectl.apply(body)
    whole = MortalClient(client)
    await settle(whole, http, key, passes=1)
    writes = whole.writes
    wanted = snapshot(kubectl, kind, "x")
    assert writes >= 4
    for number in range(1, writes + 1):
        kubectl("delete", kind, "x", "--cascade=foreground")
        kubectl.apply(body)
        with pytest.raises(Killed):
            await settle(MortalClient(client, number, after), http, key)
        await settle(MortalClient(client), http, key)
        assert snapshot(kubectl, kind, "x") == wanted, f"killed at write {number} of {writes}"


@pytest.mark.parametrize(
    ("kind", "body"),
    [("FineTuneJob", train("x", "hang", nodes=2)), ("ModelDeployment", serve("x", replicas=2))],
    ids=["train", "serve"],
)
async def test_an_idle_pass_writes_nothing(
    kubectl: Kubectl, client: Client, http: aiohttp.ClientSession, kind: str, body: dict[str, Any]
) -> None:
    key = Key(kind, kubectl.namespace, "x")
    kubectl.apply(body)
    if kind == "FineTuneJob":
        await settle(MortalClient(client), http, key, passes=1)
        kubectl("wait", "--for=condition=ready", "pod", "--all", "--timeout=60s")
    else:
        # The scripted image is no engine; once it was tried, the pods' state does not change for a while.
        await settle(MortalClient(client), http, key, passes=1)
        kubectl("rollout", "pause", "deployment/x-engine")
        kubectl("scale", "deployment/x-engine", "--replicas=2")
    await settle(MortalClient(client), http, key)
    idle = MortalClient(client)
    await settle(idle, http, key, passes=2)
    assert idle.writes == 0
