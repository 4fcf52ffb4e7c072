"""What the pages ask for: `/api/…`, each with the rights of whoever asks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, aclosing
from itertools import chain, islice
from typing import Any, TypeVar

from aiohttp import web

from tunesmith.children.meta import Owner
from tunesmith.client import AsyncClient, Conflict, FineTuneJob, Forbidden, Invalid, NotFound, answers, logs, starters
from tunesmith.client.checking import MOST, unknown_fields
from tunesmith.client.preview import FETCHED, Preview, preview
from tunesmith.client.relay import asks_for_key, forward, refusal, refused
from tunesmith.client.resources import RESOURCES, AnyResource, ModelDeployment, Resource, read
from tunesmith.console import data, views
from tunesmith.console.access import Access
from tunesmith.console.answers import problems as found_in
from tunesmith.kube.client import path_of
from tunesmith.kube.connection import ApiError
from tunesmith.schema.walk import schema_of
from tunesmith.settings import Settings
from tunesmith.training.logline import LogLine

MANAGER = "tunesmith-console"
NAME = "[a-z0-9](?:[-a-z0-9.]*[a-z0-9])?"
SPACE = f"/api/namespaces/{{namespace:{NAME}}}"
ONE = f"{SPACE}/{{kind:{'|'.join(answers.PLURALS.values())}}}/{{name:{NAME}}}"
REVIEW = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
HUBS = frozenset({"hf"})
"""What a console in the cluster reads of a model for its estimate. It reaches more than its users do: no other
address is followed there.
"""
HUB_SECONDS = 5.0
INFERENCE = "models|chat/completions|completions"
MOST_LINES = 10_000
FINISH_SECONDS = 20.0
"""Less than a pod has to end."""
Object = dict[str, Any]
Item = TypeVar("Item")


class Api:
    """The routes. `settings`: of the operator, for what a resource would become."""

    def __init__(self, access: Access, settings: Settings) -> None:
        self.access, self.settings = access, settings
        self._schemes = FETCHED if access.local else HUBS
        self._acting: set[asyncio.Task[web.Response]] = set()

    def routes(self) -> list[web.RouteDef]:
        """Method, path and handler."""
        return [
            web.get("/api/session", self.session),
            web.get("/api/namespaces", self.namespaces),
            web.get("/api/schemas/{kind}", self.schema),
            web.get("/api/starters", self.starters),
            web.get(f"{SPACE}/resources", self.resources),
            web.post(f"{SPACE}/resources", self.create),
            web.post(f"{SPACE}/check", self.check),
            web.post(f"{SPACE}/data", self.upload),
            web.get(ONE, self.one),
            web.put(ONE, self.change),
            web.delete(ONE, self.delete),
            web.post(f"{ONE}/{{verb:suspend|resume|retry}}", self.act),
            web.get(f"{ONE}/logs", self.logs),
            web.get(f"{ONE}/metrics", self.metrics),
            web.get(f"{ONE}/v1/{{rest:{INFERENCE}}}", self.infer, allow_head=False),
            web.post(f"{ONE}/v1/{{rest:{INFERENCE}}}", self.infer),
        ]

    async def finish(self, _: web.Application) -> None:
        """Wait for what must not end half done."""
        if self._acting:
            await asyncio.wait(self._acting, timeout=FINISH_SECONDS)

    # -- who and what -----------------------------------------------------------------------------------------

    async def session(self, request: web.Request) -> web.Response:
        """Who asks. A wrong token is refused here."""
        async with self._client(request) as client:
            body = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
            with answers.understood():
                found = await client.connection.call("POST", REVIEW, body)
            user = found["status"]["userInfo"].get("username", "")
            return web.json_response({"user": user, "namespace": client.namespace, "local": self.access.local})

    async def namespaces(self, request: web.Request) -> web.Response:
        """Names of all namespaces, where the user may list them."""
        async with self._client(request) as client:
            try:
                with answers.understood():
                    found = await client.connection.call("GET", "/api/v1/namespaces")
            except Forbidden as error:
                if getattr(error.__cause__, "status", 0) == 401:
                    raise
                return web.json_response({"names": [], "all": False})
        return web.json_response({"names": [one["metadata"]["name"] for one in found["items"]], "all": True})

    async def schema(self, request: web.Request) -> web.Response:
        """The schema of a kind's spec, as in its CRD."""
        kind = answers.kind_of(request.match_info["kind"])
        response = web.json_response(schema_of(kind)["properties"]["spec"])
        # The one large answer; and there is nothing secret in it that its size could tell.
        response.enable_compression()
        return response

    async def starters(self, _: web.Request) -> web.Response:
        """A resource to begin with, by method and kind."""
        jobs = [
            {"what": one, "about": about, "body": starters.train("my-job", one)}
            for one, (*_, about) in starters.METHODS.items()
        ]
        others = [{"what": one, "about": "", "body": make("my-" + one.lower())} for one, make in starters.KINDS.items()]
        return web.json_response([*jobs, *others])

    # -- resources --------------------------------------------------------------------------------------------

    async def resources(self, request: web.Request) -> web.Response:
        """All kinds of a namespace, as lines, the newest first."""
        async with self._client(request) as client:
            lists = await asyncio.gather(*(_lines(client, kind) for kind in RESOURCES))
        found = sorted(chain(*lists), key=lambda one: str(one["created"]), reverse=True)
        return web.json_response(found)

    async def one(self, request: web.Request) -> web.Response:
        """A resource with its pods and events; these are null where the user may not read them. `unknown`: fields that
        this version does not know, and goes without.
        """
        async with self._client(request) as client:
            kind, name = _kind(request), request.match_info["name"]
            body = await client.raw(kind, name)
            owner = Owner(kind, client.namespace, name, body["metadata"]["uid"])
            pods, events = await asyncio.gather(_pods(client, owner), _events(client, owner))
        line = views.line(kind, body)
        return web.json_response(
            {
                "resource": views.resource(body),
                "summary": line,
                "unknown": list(islice(unknown_fields(body), MOST)),
                "explained": views.explained(line["reason"]),
                "pods": pods,
                "events": events,
            }
        )

    async def check(self, request: web.Request) -> web.Response:
        """What is wrong with a resource that is not there yet, and what would become of it. Makes nothing."""
        asked = await _json(request)
        body, config, new = asked.get("resource"), asked.get("config"), asked.get("new", True)
        if not isinstance(body, dict) or not isinstance(config, dict | None):
            raise Invalid("expected {resource, config?}")
        async with self._client(request) as client:
            try:
                resource = _own(read(body), client.namespace)
                await _send(client, resource, new=bool(new), dry_run=True)
            except (Conflict, Invalid) as error:
                found = _problems(error)
                return web.json_response({"problems": found})
            except Forbidden as error:
                if getattr(error.__cause__, "status", 0) == 401:
                    raise
                problems = [{"path": "", "message": error.message}]
            else:
                problems = []
            namespace = client.namespace
        try:
            seen = await self._preview(resource, namespace, config)
        except Invalid as error:
            return web.json_response({"problems": _problems(error)})
        memory = {**seen.memory.status.body(), "fits": seen.memory.fits} if seen.memory else None
        return web.json_response(
            {
                "problems": problems,
                "plan": seen.plan.body() if seen.plan else None,
                "memory": memory,
                "notes": seen.notes,
                "objects": seen.objects,
            }
        )

    async def create(self, request: web.Request) -> web.Response:
        """Make a resource; one of its name must not be there."""
        body = await _json(request)
        async with self._client(request) as client:
            resource = _own(read(body), client.namespace)
            live = await _send(client, resource, new=True)
        return web.json_response(views.resource(live), status=201)

    async def upload(self, request: web.Request) -> web.Response:
        """Keep a file of rows as a ConfigMap, and say under which address jobs read it."""
        found = data.look(request.query.get("file", ""), await request.read())
        async with self._client(request) as client:
            await data.keep(client.connection, client.namespace, found)
        kept = {"uri": found.uri, "rows": found.rows, "columns": found.columns}
        return web.json_response(kept, status=201)

    async def change(self, request: web.Request) -> web.Response:
        """Replace a resource's spec; refused where it has changed since `metadata.resourceVersion`."""
        body = await _json(request)
        async with self._client(request) as client:
            resource = _own(read(body), client.namespace)
            if (resource.kind, resource.name) != (_kind(request), request.match_info["name"]):
                raise Invalid("the resource's kind and name must be those of its address")
            live = await _send(client, resource, new=False)
        return web.json_response(views.resource(live))

    async def act(self, request: web.Request) -> web.Response:
        """Suspend, resume or retry a job. It is done to its end also where the browser has gone: a retry deletes the
        job before it makes it anew.
        """
        acting = asyncio.create_task(self._act(request))
        self._acting.add(acting)
        acting.add_done_callback(self._acting.discard)
        return await asyncio.shield(acting)

    async def _act(self, request: web.Request) -> web.Response:
        async with self._client(request) as client:
            job = await self._resource(client, request)
            if isinstance(job, ModelDeployment):
                raise Invalid(f"a {job.kind} cannot be suspended, resumed or retried")
            match request.match_info["verb"]:
                case "suspend":
                    await client.suspend(job)
                case "resume":
                    await client.resume(job)
                case "retry":
                    await client.retry(job, request.query.get("name"))
        return web.json_response({})

    async def delete(self, request: web.Request) -> web.Response:
        """Delete a resource."""
        async with self._client(request) as client:
            await client.delete(await self._head(client, request))
        return web.json_response({})

    # -- streams ----------------------------------------------------------------------------------------------

    async def logs(self, request: web.Request) -> web.StreamResponse:
        """Lines of the logs, each as JSON on a line of its own."""
        query = request.query
        attempt, rank, tail = (_number(query, key) for key in ("attempt", "rank", "tail"))
        follow = query.get("follow") == "true"
        async with self._client(request) as client:
            resource = await self._head(client, request)
            tail = min(tail or MOST_LINES, MOST_LINES)
            entries = client.logs(resource, attempt=attempt, rank=rank, follow=follow, tail=tail, most=MOST_LINES)
            return await _streamed(request, entries, vars)

    async def metrics(self, request: web.Request) -> web.StreamResponse:
        """Steps of a training as they come, each as JSON on a line of its own."""
        async with self._client(request) as client:
            job = await self._resource(client, request)
            if not isinstance(job, FineTuneJob):
                raise NotFound(f"a {job.kind} has no curve")
            lines = client.stream_metrics(job, follow=request.query.get("follow") == "true")
            return await _streamed(request, lines, LogLine.body)

    async def infer(self, request: web.Request) -> web.StreamResponse:
        """A deployment's OpenAI API, through the API server: who may not use its Service's proxy is refused."""
        if _kind(request) != "ModelDeployment":
            raise NotFound(f"a {_kind(request)} serves nothing")
        async with self._client(request) as client:
            found = request.match_info
            connection, namespace = client.connection, client.namespace
            return await forward(connection, request, namespace, found["name"], found["rest"], _unserved)

    # -- parts ------------------------------------------------------------------------------------------------

    def _client(self, request: web.Request) -> AbstractAsyncContextManager[AsyncClient]:
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        own = token.strip() if kind.lower() == "bearer" else ""
        return self.access.client(own, request.match_info.get("namespace", ""))

    async def _preview(self, resource: AnyResource, namespace: str, config: Object | None) -> Preview:
        """What would be made, without an estimate where the model's address does not answer in time."""

        def look(schemes: Collection[str]) -> Awaitable[Preview]:
            return asyncio.to_thread(preview, resource, self.settings, namespace, config, schemes)

        try:
            return await asyncio.wait_for(look(self._schemes), HUB_SECONDS)
        except TimeoutError:
            return await look(frozenset())

    async def _resource(self, client: AsyncClient, request: web.Request) -> AnyResource:
        return await client.get(RESOURCES[_kind(request)], request.match_info["name"])  # type: ignore[type-var]

    async def _head(self, client: AsyncClient, request: web.Request) -> Resource:
        """Who a resource is: known also of one that this version cannot read."""
        body = await client.raw(_kind(request), request.match_info["name"])
        return Resource.model_validate({"kind": _kind(request), "metadata": body["metadata"]})


def _unserved(error: ApiError) -> web.Response:
    """What a deployment refused. A 401 of its own would end the user's session with the console."""
    if asks_for_key(error):
        hint = "the API server does not pass keys on; ask its Service, by `kubectl port-forward`"
        return refusal(502, f"the deployment asks for an API key: {hint}")
    return refused(error)


def _kind(request: web.Request) -> str:
    return answers.kind_of(request.match_info["kind"])


def _own(resource: AnyResource, namespace: str) -> AnyResource:
    """The resource in the namespace of the address, which is where it is checked and made."""
    if resource.metadata.namespace not in {None, namespace}:
        raise Invalid.fields(resource.name, [f"metadata.namespace: the console works in {namespace}"])
    return resource


async def _send(client: AsyncClient, resource: AnyResource, *, new: bool, dry_run: bool = False) -> Object:
    """Make a resource, or replace its spec."""
    namespace, body = client.namespace, resource.manifest()
    query = {"fieldManager": MANAGER, "fieldValidation": "Strict", **({"dryRun": "All"} if dry_run else {})}
    with answers.understood(resource.kind, resource.name, namespace):
        if new:
            return await client.connection.call("POST", path_of(resource.kind, namespace), body, query=query)
        live = await client.raw(resource.kind, resource.name)
        version = resource.metadata.resource_version or live["metadata"]["resourceVersion"]
        body = {**live, "metadata": {**live["metadata"], "resourceVersion": version}, "spec": body["spec"]}
        return await client.connection.call("PUT", path_of(resource.kind, namespace, resource.name), body, query=query)


def _problems(error: Conflict | Invalid) -> list[dict[str, str]]:
    """What is wrong, each with its field."""
    found = found_in(error) if isinstance(error, Invalid) else []
    return found or [{"path": "metadata.name" if isinstance(error, Conflict) else "", "message": error.message}]


async def _lines(client: AsyncClient, kind: str) -> list[Object]:
    return [views.line(kind, body) async for body in client.listed(kind)]


async def _pods(client: AsyncClient, owner: Owner) -> list[Object] | None:
    try:
        with answers.understood("pods", owner.name, owner.namespace):
            found = await logs.pods(client.connection, owner)
    except Forbidden:
        return None
    return sorted(map(views.pod, found), key=lambda one: (-one["attempt"], one["rank"], one["name"]))


async def _events(client: AsyncClient, owner: Owner) -> list[Object] | None:
    query = {"fieldSelector": f"involvedObject.uid={owner.uid}"}
    try:
        with answers.understood("events", owner.name, owner.namespace):
            found = await client.connection.call("GET", path_of("Event", owner.namespace), query=query)
    except Forbidden:
        return None
    return sorted(map(views.event, found["items"]), key=lambda one: one["time"] or "", reverse=True)


async def _streamed(
    request: web.Request, items: AsyncGenerator[Item, None], shown: Callable[[Item], Object]
) -> web.StreamResponse:
    """Items as lines of JSON. What goes wrong after the first is a line with `error`. Nothing is read any more when it
    returns.
    """
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson", "X-Accel-Buffering": "no"})
    first = True
    try:
        async with aclosing(items):
            async for one in items:
                if first:
                    await response.prepare(request)
                    first = False
                await response.write(json.dumps(shown(one), ensure_ascii=False).encode() + b"\n")
    except (ConnectionResetError, asyncio.CancelledError):
        raise
    except Exception as error:
        if first:
            raise
        message = getattr(error, "message", "the console has a fault")
        await response.write(json.dumps({"error": message}).encode() + b"\n")
    if first:
        await response.prepare(request)
    await response.write_eof()
    return response


async def _json(request: web.Request) -> Any:
    try:
        found = json.loads(await request.read())
    except (ValueError, RecursionError):
        raise Invalid("the request is not JSON") from None
    if not isinstance(found, dict):
        raise Invalid("the request is not a JSON object")
    return found


def _number(query: Any, key: str) -> int | None:
    text = query.get(key, "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 6:
        raise Invalid(f"{key}={text}: expected a number")
    return int(text)
