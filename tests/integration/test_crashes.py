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
    """What a user would call the state: conditions, and the children's names without the owner's."""
    kinds = "job,configmap,service,secret,deployment,poddisruptionbudget"
    children = kubectl("get", kinds, "-l", f"tunesmith.io/name={name}", "-o", "name").split()
    status = kubectl.get(kind, name).get("status", {})
    return {
        "children": sorted(child.replace(name, "x") for child in children),
        "conditions": [(c["type"], c["status"], c["reason"]) for c in status.get("conditions", [])],
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
    kubectl("create", "quota", "no-pods", "--hard=pods=0")  # what pods do is not what this is about

    async def live(name: str, client: MortalClient) -> None:
        key = Key(kind, kubectl.namespace, name)
        kubectl.apply({**body, "metadata": {"name": name}})
        await settle(client, http, key, passes=1)

    whole = MortalClient(client)
    await live("whole", whole)
    await settle(MortalClient(client), http, Key(kind, kubectl.namespace, "whole"))
    wanted = snapshot(kubectl, kind, "whole")
    assert whole.writes >= 4
    for number in range(1, whole.writes + 1):
        with pytest.raises(Killed):
            await live(f"dies-{number}", MortalClient(client, number, after))
        await settle(MortalClient(client), http, Key(kind, kubectl.namespace, f"dies-{number}"))
        found = snapshot(kubectl, kind, f"dies-{number}")
        assert found == wanted, f"killed at write {number} of {whole.writes}"


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
    if kind == "ModelDeployment":
        kubectl("create", "quota", "no-pods", "--hard=pods=0")  # the scripted image is no engine
    await settle(MortalClient(client), http, key, passes=1)
    if kind == "FineTuneJob":
        kubectl.wait_for_pods(2)
    await settle(MortalClient(client), http, key)
    idle = MortalClient(client)
    await settle(idle, http, key, passes=2)
    assert idle.writes == 0
