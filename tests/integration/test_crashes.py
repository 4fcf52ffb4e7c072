"""The operator killed between any two writes, and before and after each: the end is always the same."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from integration.harness import Kubectl, custom, reconciler, serve, train
from tunesmith.kube.client import ApiError, Client, Object
from tunesmith.reconcile import Key


def merge(behaviour: str, **spec: Any) -> dict[str, Any]:
    """A merge that waits for no other resource."""
    model = {"uri": f"file:///behave/{behaviour}"}
    return custom("MergeJob", "x", {"model": model, "adapters": [{"uri": "file:///adapter"}], **spec})


def infer(behaviour: str, **spec: Any) -> dict[str, Any]:
    """A model that is asked and waits for no other resource."""
    model, datasets = {"uri": f"file:///behave/{behaviour}"}, [{"uri": "file:///rows.jsonl"}]
    return custom("InferenceJob", "x", {"model": model, "datasets": datasets, **spec})


HANGING = train("x", "hang", nodes=2, memory={"check": "Disabled"})
STATES = {"train": HANGING, "merge": merge("hang"), "infer": infer("hang"), "serve": serve("x", replicas=2)}
RESTARTED = {"cleanPodPolicy": "All", "restartPolicy": {"backoffSeconds": 0}}
PUSHED = {"output": {"push": [{"uri": "s3://behave/there"}]}}
LIVES = {
    "train": train("x", "crash-once", nodes=2, **RESTARTED),
    "merge": merge("crash-once", **RESTARTED, **PUSHED),
    "infer": infer("crash-once", **RESTARTED),
}
SLICE: dict[str, Any] = {"infer": (), "merge": pytest.mark.long, "train": pytest.mark.long}


class Killed(BaseException):
    """The process is gone; no handler may see it."""


class MortalClient(Client):
    """Dies at the n-th write, before it or after it. Counts writes."""

    def __init__(self, live: Client, dies_at: int | None = None, after: bool = False) -> None:
        super().__init__()
        self._connection = live._connection
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
@pytest.mark.parametrize("body", STATES.values(), ids=STATES)
async def test_killed_at_any_write_it_ends_in_the_same_state(
    kubectl: Kubectl, client: Client, http: aiohttp.ClientSession, body: dict[str, Any], after: bool
) -> None:
    kind = body["kind"]
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


async def whole_life(kubectl: Kubectl, http: aiohttp.ClientSession, body: dict[str, Any], mortal: MortalClient) -> bool:
    """From its creation to its end and the deletion of its pods. Whether the operator was killed in between, when
    another one took over.
    """
    name = body["metadata"]["name"]
    await asyncio.to_thread(kubectl.apply, body)
    operator, key, was_killed = mortal, Key(body["kind"], kubectl.namespace, name), False
    while True:
        try:
            await reconciler(operator, http).reconcile(key)
        except Killed:
            operator, was_killed = MortalClient(mortal), True
        except ApiError as error:  # the queue tries it again
            if error.permanent:
                raise
        resource = await operator.get(*key)
        status = (resource or {}).get("status", {})
        over = any(c["type"] == "Succeeded" and c["status"] != "Unknown" for c in status.get("conditions", []))
        over = over and len(status.get("pushed", [])) == len(body["spec"].get("output", {}).get("push", []))
        if over and not await operator.list("Job", kubectl.namespace, f"tunesmith.io/name={name}"):
            return was_killed
        await asyncio.sleep(0.5)


@pytest.mark.parametrize("body", [pytest.param(LIVES[one], marks=marks) for one, marks in SLICE.items()], ids=SLICE)
async def test_killed_at_any_write_of_its_life_a_job_comes_to_the_same_end(
    kubectl: Kubectl, client: Client, http: aiohttp.ClientSession, body: dict[str, Any]
) -> None:
    """Inspection (of training), a failed attempt, a second one that succeeds, the push of what it made (of merging),
    and the deletion of all.
    """

    async def live(name: str, client: MortalClient) -> bool:
        return await whole_life(kubectl, http, {**body, "metadata": {"name": name}}, client)

    def end(name: str) -> dict[str, Any]:
        status = kubectl.get(body["kind"], name)["status"]
        parts = ("number", "nodes", "reason", "counted", "exitCode")
        return snapshot(kubectl, body["kind"], name) | {
            "attempts": [{part: one.get(part) for part in parts} for one in status["attempts"]],
            "restarts": status["restarts"],
            "artifact": status["artifact"]["digest"],
            "pushed": [one["uri"] for one in status.get("pushed", [])],
        }

    whole = MortalClient(client)
    async with asyncio.timeout(120):
        await live("whole", whole)
    wanted = end("whole")
    assert [one["reason"] for one in wanted["attempts"]] == ["Internal", "Completed"]
    assert whole.writes >= 12
    fates = {
        f"{when}-{number}": MortalClient(client, number, when == "after")
        for number in range(1, whole.writes + 1)
        for when in ("before", "after")
    }
    names, killed = list(fates), []
    async with asyncio.timeout(500):
        for batch in (names[i : i + 8] for i in range(0, len(names), 8)):
            killed += await asyncio.gather(*(live(name, fates[name]) for name in batch))
    # The last writes may be fewer in another run: some events of pods are seen in one pass or in two.
    assert all(killed[: len(killed) * 3 // 4])
    for name in names:
        assert end(name) == wanted, name


@pytest.mark.parametrize("body", STATES.values(), ids=STATES)
async def test_an_idle_pass_writes_nothing(
    kubectl: Kubectl, client: Client, http: aiohttp.ClientSession, body: dict[str, Any]
) -> None:
    kind = body["kind"]
    key = Key(kind, kubectl.namespace, "x")
    kubectl.apply(body)
    if kind == "ModelDeployment":
        kubectl("create", "quota", "no-pods", "--hard=pods=0")  # the scripted image is no engine
    await settle(MortalClient(client), http, key, passes=1)
    if kind != "ModelDeployment":
        kubectl.wait_for_pods(body["spec"].get("nodes", 1))
    await settle(MortalClient(client), http, key)
    idle = MortalClient(client)
    await settle(idle, http, key, passes=2)
    assert idle.writes == 0
