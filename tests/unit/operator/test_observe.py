"""What is read of the API server and of pods, and what comes of it: against an HTTP server that keeps objects as the
API server does, as far as this needs it. tests/integration asks a real one.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tunesmith import observe
from tunesmith.apply import Applier
from tunesmith.kube.client import Client, path_of
from tunesmith.observe import Observer
from tunesmith.reconcile import Key, Reconciler
from unit.operator.builders import SETTINGS, begun, finished, job, mine, pod, serve, train
from unit.operator.servers import Answer, answering, as_kubernetes

SELECTOR = re.compile(r"[-\w./]+(=[-\w.]*)?(,[-\w./]+(=[-\w.]*)?)*")
LISTED = {"jobs", "pods", "finetunejobs", "services", "endpointslices", "nodes", "events"}
ADAPTER = {"name": "sql", "uri": "pvc://store/sql", "replicas": 1}


class Kubernetes:
    """Objects by their paths."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, Any]] = {}
        self.asked: list[tuple[str, str]] = []
        self.refuses: dict[str, int] = {}
        """How often the making of an object is refused, by the plural of its kind."""

    def keep(self, *bodies: dict[str, Any], namespace: str = "ns") -> None:
        for body in bodies:
            meta = {"resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z", **body["metadata"]}
            body = {"apiVersion": "v1", **body, "metadata": {**meta, "namespace": namespace}}
            self.kept[path_of(body["kind"], namespace, meta["name"])] = body

    def get(self, kind: str, name: str) -> dict[str, Any]:
        return self.kept[path_of(kind, "ns", name)]

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append((request.method, request.path))
        path, body = request.path.removesuffix("/status"), json.loads(await request.read() or b"null")
        if request.method == "DELETE":
            return web.json_response(self.kept.pop(path))
        if request.method == "POST" and self.refuses.get(path.rsplit("/", 1)[1], 0) > 0:
            self.refuses[path.rsplit("/", 1)[1]] -= 1
            message = "Operation cannot be fulfilled on resourcequotas: the object has been modified"
            return web.json_response({"message": message, "reason": "Conflict"}, status=409)
        if request.method == "POST" and f"{path}/{body['metadata']['name']}" in self.kept:
            return web.json_response({"message": "it already exists", "reason": "AlreadyExists"}, status=409)
        if request.method == "POST":
            self.kept[f"{path}/{body['metadata']['name']}"] = body
            return web.json_response(body)
        if request.method == "PATCH":
            old = self.kept.get(path, {})
            self.kept[path] = {**old, **body, "metadata": {**old.get("metadata", {}), **body["metadata"]}}
            return web.json_response(self.kept[path])
        if path in self.kept:
            return web.json_response(self.kept[path])
        if path.rsplit("/", 1)[1] not in LISTED:
            return web.json_response({"message": f"{path} not found"}, status=404)
        selector = request.query.get("labelSelector", "")
        if selector and not SELECTOR.fullmatch(selector):
            return web.json_response({"message": f"unable to parse {selector!r}"}, status=400)
        wanted = [one.partition("=") for one in selector.split(",") if one]
        found = [one for at, one in self.kept.items() if at.rsplit("/", 1)[0] == path]
        labels = [one["metadata"].get("labels", {}) for one in found]
        fits = [all(k in own and (not eq or own[k] == v) for k, eq, v in wanted) for own in labels]
        return web.json_response({"items": [one for one, fit in zip(found, fits, strict=True) if fit]})


@pytest.fixture
async def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Kubernetes]:
    kept = Kubernetes()
    async with as_kubernetes(kept.answer, tmp_path, monkeypatch):
        kept.keep(mine("PersistentVolumeClaim", "store", spec={"accessModes": ["ReadWriteMany"]}))
        kept.keep(mine("PersistentVolumeClaim", "tunesmith-store", spec={"accessModes": ["ReadWriteMany"]}))
        kept.keep(mine("ConfigMap", "data", data={"train.jsonl": ""}))
        yield kept


@pytest.fixture
async def client(kubernetes: Kubernetes) -> AsyncIterator[Client]:
    async with Client() as client:
        yield client


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as http:
        yield http


@pytest.fixture
def observer(client: Client, http: aiohttp.ClientSession) -> Observer:
    return Observer(client, http, SETTINGS)


@pytest.fixture
def reconciler(client: Client, http: aiohttp.ClientSession, observer: Observer) -> Reconciler:
    return Reconciler(observer, Applier(client, http, observer.admin_tokens), SETTINGS)


def ready(kubernetes: Kubernetes) -> tuple[str, str]:
    [one] = [c for c in kubernetes.get("ModelDeployment", "x")["status"]["conditions"] if c["type"] == "Ready"]
    return one["reason"], one["message"]


async def test_a_name_in_a_spec_leads_to_no_object_elsewhere(kubernetes: Kubernetes, observer: Observer) -> None:
    secret = {"kind": "Secret", "metadata": {"name": "s", "uid": "s"}}
    kubernetes.keep(finished("FineTuneJob", "victim", "models"), secret, namespace="other")
    volume = {"name": "v", "secret": {"secretName": "../../other/secrets/s"}}
    kubernetes.keep(
        train(model={"fineTuneJobRef": {"name": "../../other/finetunejobs/victim"}}, podTemplate={"volumes": [volume]})
    )
    world = await observer.observe("FineTuneJob", "ns", "x")
    assert world is not None
    assert list(world.references.values()) == [None]
    assert world.missing == (
        "spec.podTemplate.volumes[0]: Secret ../../other/secrets/s does not exist: create it in namespace ns",
    )
    assert not [path for _, path in kubernetes.asked if "other" in path]


@pytest.mark.parametrize(
    ("kind", "name", "spec"),
    [
        ("Service", "x-sql", {"adapters": [ADAPTER]}),
        ("HorizontalPodAutoscaler", "x", {"autoscaling": {"maxReplicas": 2, "queueLength": 5}}),
        ("Service", "x-engines", {"gateway": {}}),
    ],
)
async def test_an_object_of_others_that_has_the_name_of_a_child_stays_as_it_is(
    kubernetes: Kubernetes, reconciler: Reconciler, kind: str, name: str, spec: dict[str, Any]
) -> None:
    theirs = {"kind": kind, "metadata": {"name": name, "uid": "theirs"}, "spec": {"of": "others"}}
    kubernetes.keep(serve(**spec), theirs)
    before = kubernetes.get(kind, name)
    await reconciler.reconcile(Key("ModelDeployment", "ns", "x"))
    assert kubernetes.get(kind, name) == before
    reason, message = ready(kubernetes)
    assert reason == "NameTaken"
    assert message.startswith(f"{kind} {name} exists and does not belong to this ModelDeployment")


async def test_a_job_that_a_quota_under_change_refuses_is_made_at_the_next_try(
    kubernetes: Kubernetes, reconciler: Reconciler
) -> None:
    """The API server answers with 409 then, too, as for an object that is there already."""
    kubernetes.keep(train())
    kubernetes.refuses["jobs"] = 1
    key = Key("FineTuneJob", "ns", "x")
    assert await reconciler.reconcile(key) == 0
    assert not kubernetes.get("FineTuneJob", "x")["status"].get("attempts"), "nothing runs yet"
    await reconciler.reconcile(key)
    assert kubernetes.get("Job", "x-train-1")
    assert len(kubernetes.get("FineTuneJob", "x")["status"]["attempts"]) == 1


async def test_a_change_of_a_job_that_is_over_is_seen_and_nothing_else_comes_of_it(
    kubernetes: Kubernetes, reconciler: Reconciler
) -> None:
    """Flux, and others that know the convention, wait for a status that speaks of the spec that they applied."""
    status = {**finished("FineTuneJob", "x")["status"], "observedGeneration": 2}
    kubernetes.keep(train(status, suspend=True))
    for _ in range(2):
        await reconciler.reconcile(Key("FineTuneJob", "ns", "x"))
    now = kubernetes.get("FineTuneJob", "x")["status"]
    assert (now["observedGeneration"], now["conditions"]) == (3, status["conditions"])
    assert [method for method, _ in kubernetes.asked if method != "GET"] == ["PATCH"]


async def test_what_is_there_already_is_not_made_again(kubernetes: Kubernetes, client: Client) -> None:
    plan = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "ns", "name": "plan"}}
    assert await client.create(plan)
    assert not await client.create(plan)


async def test_labels_that_select_nothing_are_said(kubernetes: Kubernetes, reconciler: Reconciler) -> None:
    kubernetes.keep(serve(adapterSelector={"matchLabels": {"team": "a b"}}))
    await reconciler.reconcile(Key("ModelDeployment", "ns", "x"))
    assert ready(kubernetes) == (
        "WaitingForInput",
        "spec.adapterSelector.matchLabels: unable to parse 'team=a b'",
    )


async def test_a_node_selector_that_is_none_keeps_no_job_from_being_looked_at(
    kubernetes: Kubernetes, observer: Observer
) -> None:
    asks = {"memory": {"check": "Warn"}, "resources": {"limits": {"nvidia.com/gpu": 1}}}
    kubernetes.keep(train(**asks, podTemplate={"nodeSelector": {"gpu": "a b"}}))
    world = await observer.observe("FineTuneJob", "ns", "x")
    assert world is not None
    assert world.gpu_memory is None


async def test_of_several_refusals_the_newest_is_said(kubernetes: Kubernetes, observer: Observer) -> None:
    def refused(name: str, minute: int, **time: Any) -> dict[str, Any]:
        stamp = {"metadata": {"name": name, "uid": name, "creationTimestamp": f"2026-01-01T00:0{minute}:00Z"}}
        return {"kind": "Event", "message": f"at minute {minute}", **stamp, **time}

    kubernetes.keep(train(status=begun()), owned(job(), "FineTuneJob"))
    kubernetes.keep(refused("x.9", 1, lastTimestamp="2026-01-01T00:01:00Z"))
    kubernetes.keep(refused("x.5", 3, lastTimestamp=None, eventTime="2026-01-01T00:03:00.000000Z"))
    kubernetes.keep(refused("x.1", 2, lastTimestamp="2026-01-01T00:02:00Z"))
    world = await observer.observe("FineTuneJob", "ns", "x")
    assert world is not None
    assert world.refusals == ("at minute 3",), "they come by name"


@asynccontextmanager
async def pods_that(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """The pods on the loopback answer so."""
    async with answering(answer) as server:
        for name in ("PORT", "AGENT_PORT"):
            monkeypatch.setattr(observe, name, server.port)
        yield


def owned(pod: dict[str, Any], kind: str, **labels: str) -> dict[str, Any]:
    pod["metadata"]["labels"] |= {"tunesmith.io/kind": kind, "tunesmith.io/name": "x", **labels}
    return pod


async def test_a_pod_leads_the_operator_nowhere(
    kubernetes: Kubernetes, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may run a pod could ask with the operator's place in the network else."""
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        if request.path == "/internal":
            return web.json_response({"step": 7, "waiting": "a secret"})
        return web.Response(status=302, headers={"Location": f"http://127.0.0.1:{request.url.port}/internal"})

    async with pods_that(answer, monkeypatch):
        kubernetes.keep(train(), owned(pod(podIP="127.0.0.1"), "FineTuneJob"))
        world = await observer.observe("FineTuneJob", "ns", "x")
        kubernetes.keep(serve(), owned(pod(podIP="127.0.0.1"), "ModelDeployment"))
        await observer.observe("ModelDeployment", "ns", "x")
    assert world is not None
    assert world.report is None
    assert asked == ["/progress", "/status"]


async def test_an_answer_without_an_end_is_not_read_to_the_end(
    kubernetes: Kubernetes, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observe, "MAX_BODY", 2**20)
    sent, chunk = 0, b" " * 2**16

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(chunk)
            sent += len(chunk)

    async with pods_that(answer, monkeypatch):
        kubernetes.keep(train(), owned(pod(podIP="127.0.0.1"), "FineTuneJob"))
        world = await observer.observe("FineTuneJob", "ns", "x")
    assert world is not None
    assert world.report is None
    assert sent < 2**25, "what lies in buffers between the two, and no more"


@pytest.mark.parametrize("said", ['{"revision": "none"}', "[]", "no JSON"])
async def test_a_gateway_that_says_something_else_stops_no_pass(
    kubernetes: Kubernetes, observer: Observer, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=said, content_type="application/json")

    async with pods_that(answer, monkeypatch):
        role = {"tunesmith.io/role": "gateway"}
        kubernetes.keep(serve(gateway={}), owned(pod(podIP="127.0.0.1"), "ModelDeployment", **role))
        world = await observer.observe("ModelDeployment", "ns", "x")
    assert world is not None
    assert world.gateway_pods
    assert not world.gateways
