"""The client: everything that a user does with the kinds of tunesmith, with the user's own kubeconfig."""

from __future__ import annotations

import asyncio
import builtins
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, Self, TypeVar, overload

from tunesmith.api.base import API_VERSION
from tunesmith.children.meta import Owner
from tunesmith.client import answers, checking, logs
from tunesmith.client.curves import Curve
from tunesmith.client.errors import Conflict, Forbidden, JobFailed, NotFound, NotServed, Unreadable, WaitTimeout
from tunesmith.client.logs import LogEntry, Which
from tunesmith.client.relay import relay
from tunesmith.client.resources import (
    RESOURCES,
    AnyJob,
    AnyResource,
    FineTuneJob,
    InferenceJob,
    MergeJob,
    ModelDeployment,
    Resource,
    read,
)
from tunesmith.kube.client import path_of
from tunesmith.kube.connection import Connection, Object
from tunesmith.training.logline import LogLine, parse

MANAGER = "tunesmith-client"
PAGE = 250
POLL_SECONDS = 1.0
GONE_SECONDS = 180.0
R = TypeVar("R", FineTuneJob, MergeJob, InferenceJob, ModelDeployment)
Messages = str | Sequence[Mapping[str, Any]]


class AsyncClient:
    """Used as `async with AsyncClient() as client`. `namespace`: by default that of the kubeconfig's context.
    `connection`: in place of one that the kubeconfig describes.
    """

    def __init__(
        self,
        namespace: str | None = None,
        *,
        context: str | None = None,
        kubeconfig: str | None = None,
        connection: Connection | None = None,
    ) -> None:
        self.connection = connection or Connection(kubeconfig, context)
        self._namespace = namespace
        self._open = False

    async def __aenter__(self) -> Self:
        if not self._open:
            with answers.understood():
                await self.connection.open()
            self._open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self._open = False
        await self.connection.close()

    @property
    def namespace(self) -> str:
        """The namespace that is worked in."""
        return self._namespace or self.connection.namespace

    # -- resources --------------------------------------------------------------------------------------------

    @overload
    async def submit(self, resource: R, *, force: bool = ..., dry_run: bool = ...) -> R: ...
    @overload
    async def submit(self, resource: Mapping[str, Any], *, force: bool = ..., dry_run: bool = ...) -> AnyResource: ...
    async def submit(
        self, resource: Resource | Mapping[str, Any], *, force: bool = False, dry_run: bool = False
    ) -> Resource:
        """Make or change a resource by server-side apply. `force` takes over fields that others own; `dry_run` has
        the API server check it and keep nothing. Raises Invalid, Conflict and Forbidden.
        """
        body = (resource if isinstance(resource, Resource) else read(resource)).manifest()
        live = await self.apply(body, force=force, dry_run=dry_run)
        return RESOURCES[body["kind"]].stored(live)

    async def apply(self, body: Object, *, force: bool = False, dry_run: bool = False) -> Object:
        """The same for an object as it is, also one that jobs use: a ConfigMap, a claim, a Secret."""
        kind, name = body["kind"], body["metadata"]["name"]
        namespace = body["metadata"].get("namespace") or self.namespace
        body = {**body, "metadata": {**body["metadata"], "namespace": namespace}}
        query = {"fieldManager": MANAGER, "fieldValidation": "Strict", **({"force": "true"} if force else {})}
        query |= {"dryRun": "All"} if dry_run else {}
        with answers.understood(kind, name, namespace):
            path = path_of(kind, namespace, name)
            return await self.connection.call("PATCH", path, body, query=query, content="application/apply-patch+yaml")

    async def get(self, kind: type[R], name: str, namespace: str | None = None) -> R:
        """One resource. Raises NotFound, which says where else there is one of its name, and Unreadable."""
        return kind.stored(await self.raw(kind.kind_name(), name, namespace))

    async def raw(self, kind: str, name: str, namespace: str | None = None) -> Object:
        """One resource as the API server has it."""
        namespace = namespace or self.namespace
        try:
            with answers.understood(kind, name, namespace):
                return await self.connection.call("GET", path_of(kind, namespace, name))
        except NotFound as error:
            raise NotFound(error.message, await self._elsewhere(kind, name, namespace)) from None

    async def refresh(self, resource: Resource) -> AnyResource:
        """The resource as it is now."""
        body = await self.raw(resource.kind, resource.name, resource.metadata.namespace)
        return RESOURCES[resource.kind].stored(body)

    async def list(self, kind: type[R], namespace: str | None = None, *, everywhere: bool = False) -> builtins.list[R]:
        """All resources of a kind, in the namespace or everywhere, by age. Raises Unreadable."""
        items = await self._items(kind.kind_name(), None if everywhere else namespace or self.namespace)
        return [kind.stored(one) for one in items]

    async def listed(self, kind: str) -> AsyncIterator[Object]:
        """All resources of a kind in the namespace, by name, as the API server has them. It is asked page by page."""
        query = {"limit": str(PAGE)}
        while True:
            with answers.understood(kind, "", self.namespace):
                found = await self.connection.call("GET", path_of(kind, self.namespace), query=query)
            for one in found["items"]:
                yield one
            if not (more := found["metadata"].get("continue")):
                return
            query["continue"] = more

    async def find(self, name: str, namespace: str | None = None) -> AnyResource:
        """The resource of this name, of whichever kind: `x`, or `ftj/x`. Raises NotFound; Conflict where several
        kinds have one.
        """
        kind, _, bare = name.rpartition("/")
        wanted = [answers.kind_of(kind)] if kind else [*RESOURCES]
        found: builtins.list[AnyResource] = []
        hints: builtins.list[str] = []
        for one in wanted:
            try:
                found.append(await self.get(RESOURCES[one], bare, namespace))  # type: ignore[type-var]
            except NotFound as error:
                hints.append(error.hint)
        if len(found) > 1:
            kinds = " and ".join(f"{one.kind.lower()}/{bare}" for one in found)
            raise Conflict(f"{bare} is the name of several resources", f"say which: {kinds}")
        if not found:
            kinds = wanted[0] if kind else "resource"
            raise NotFound(
                f"there is no {kinds} {bare} in namespace {namespace or self.namespace}",
                min(hints, key=answers.usefulness),
            )
        return found[0]

    async def wait(
        self, resource: Resource, seconds: float | None = None, *, poll: float = POLL_SECONDS
    ) -> AnyResource:
        """Until a job succeeded, or a deployment is Ready. Raises JobFailed with the condition's message, and
        WaitTimeout.
        """
        last: AnyResource | None = None
        async for last in self.watch(resource, poll=poll, seconds=seconds):
            if last.failed:
                failure = None if isinstance(last, ModelDeployment) else last.status.failure
                raise JobFailed(last.kind, last.name, last.reason, last.message, failure)
        if last is None:
            raise RuntimeError("watch ended without a look")
        return last

    async def watch(
        self, resource: Resource, *, poll: float = POLL_SECONDS, seconds: float | None = None
    ) -> AsyncIterator[AnyResource]:
        """The resource whenever it has changed, until it is over. Raises WaitTimeout."""
        end = None if seconds is None else time.monotonic() + seconds
        version = None
        while True:
            live = await self.refresh(resource)
            if live.metadata.resource_version != version:
                version = live.metadata.resource_version
                yield live
            if live.over:
                return
            if end is not None and time.monotonic() > end:
                what = f"{live.kind} {live.name} is not there after {seconds:g} s: {live.reason}: {live.message}"
                raise WaitTimeout(what)
            await asyncio.sleep(poll)

    async def suspend(self, job: AnyJob) -> None:
        """Checkpoint, end the pods, and free what they hold."""
        await self._patch(job, {"spec": {"suspend": True}})

    async def resume(self, job: AnyJob) -> None:
        """Go on from the checkpoint."""
        await self._patch(job, {"spec": {"suspend": False}})

    async def retry(self, job: AnyJob, name: str | None = None) -> AnyResource:
        """Run a job that is over once more, from its beginning: under its own name, which removes the record of the
        run before, or under another `name`. Raises Invalid where it has a field that this version does not know.
        """
        body = await self.raw(job.kind, job.name, job.metadata.namespace)
        current = RESOURCES[job.kind].stored(body)
        if not current.over:
            raise Conflict(f"{job.kind} {job.name} is not over: {current.reason}", "suspend it, or delete it first")
        checking.check(body)  # a field that this version does not know would be lost
        manifest = current.manifest()
        manifest["spec"].pop("suspend", None)
        if name:
            manifest["metadata"]["name"] = name
        else:
            await self.submit(manifest, force=True, dry_run=True)  # what would be refused is not removed first
            await self.delete(current, wait=True)
        return await self.submit(manifest)

    async def delete(self, resource: Resource, *, wait: bool = False) -> None:
        """Delete a resource and its pods. What it made stays in the store."""
        namespace = resource.metadata.namespace or self.namespace
        path = path_of(resource.kind, namespace, resource.name)
        with answers.understood(resource.kind, resource.name, namespace):
            await self.connection.call("DELETE", path, {"propagationPolicy": "Foreground"})
        end = time.monotonic() + GONE_SECONDS
        while wait:
            try:
                await self.raw(resource.kind, resource.name, namespace)
            except NotFound:
                return
            if time.monotonic() > end:
                raise WaitTimeout(f"{resource.kind} {resource.name} is still being deleted: its pods do not end")
            await asyncio.sleep(0.5)

    # -- what a job does --------------------------------------------------------------------------------------

    async def logs(
        self,
        resource: Resource,
        *,
        attempt: int | None = None,
        rank: int | None = None,
        follow: bool = False,
        tail: int | None = None,
        most: int | None = None,
    ) -> AsyncGenerator[LogEntry, None]:
        """The lines of all ranks by time; by default of the newest attempt. `tail`: the last of each container;
        `most`: the last of all. `follow`: as they come, also of attempts that begin, until the job is over.
        """
        which, owner = Which(attempt, rank), self._owner(resource)
        with answers.understood(resource.kind, resource.name, owner.namespace):
            if not follow:
                for entry in await logs.merged(self.connection, owner, which, tail, most):
                    yield entry
                return

            async def over() -> bool:
                try:
                    return (await self.refresh(resource)).over
                except Unreadable:  # also such a resource has pods
                    return False

            async with aclosing(logs.follow(self.connection, owner, which, over, tail)) as entries:
                async for entry in entries:
                    yield entry

    async def stream_metrics(self, job: FineTuneJob, *, follow: bool = True) -> AsyncGenerator[LogLine, None]:
        """The lines of the training's log as they come: step, loss, learning rate, speed, and what the method
        measures. From the logs of rank 0 of all attempts that are still there; where they cannot be read, from the
        status, every ten seconds. `follow` False: those that are there.
        """
        curve, owner = Curve(job.name), self._owner(job)
        which = Which(rank=0, every_attempt=True)
        try:
            with answers.understood("pods/log", job.name, owner.namespace):
                if follow:

                    async def over() -> bool:
                        return (await self.refresh(job)).over

                    async with aclosing(logs.follow(self.connection, owner, which, over, None)) as entries:
                        async for entry in entries:
                            if (line := parse(entry.text)) and curve.add(line):
                                yield line
                else:
                    for entry in await logs.merged(self.connection, owner, which, None):
                        if (line := parse(entry.text)) and curve.add(line):
                            yield line
        except Forbidden:
            pass
        if not curve.points:
            async for live in self.watch(job):
                line = _from_status(live)
                if line and curve.add(line):
                    yield line
                if not follow:
                    return

    async def curve(self, job: FineTuneJob) -> Curve:
        """What the job has logged so far."""
        curve = Curve(job.name)
        async for line in self.stream_metrics(job, follow=False):
            curve.add(line)
        return curve

    # -- what a deployment serves -----------------------------------------------------------------------------

    def endpoint(self, deployment: str, namespace: str | None = None) -> AbstractAsyncContextManager[str]:
        """The address of a deployment's OpenAI API on this machine, while the block runs, for any client."""
        return relay(self.connection, namespace or self.namespace, deployment)

    async def chat(
        self, deployment: str, messages: Messages, *, model: str | None = None, **options: Any
    ) -> AsyncIterator[str]:
        """The answer, piece by piece. `model`: an adapter's name; by default the deployment's own model. `options`
        are the OpenAI API's, for example temperature. Raises NotServed.
        """
        import openai

        live = await self.get(ModelDeployment, deployment)
        said: Any = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        async with self.endpoint(deployment) as url, openai.AsyncOpenAI(base_url=url, api_key="none") as client:
            try:
                stream = await client.chat.completions.create(
                    model=model or live.spec.model_name, messages=said, stream=True, **options
                )
                async for event in stream:
                    if event.choices and (piece := event.choices[0].delta.content):
                        yield piece
            except openai.NotFoundError as error:
                names = [live.spec.model_name, *(one.name for one in live.status.adapters if one.state == "Ready")]
                hint = f"{deployment} serves {', '.join(names)}"
                raise NotServed(f"ModelDeployment {deployment}: {error.message}", hint) from error
            except openai.AuthenticationError as error:
                hint = "the API server does not pass keys on: ask its Service, by `kubectl port-forward`"
                raise NotServed(f"ModelDeployment {deployment} asks for an API key", hint) from error
            except openai.APIError as error:
                hint = f"{live.reason}: {live.message}" if not live.done else "`tunesmith logs` shows the engine's log"
                why = f" ({error.__cause__})" if error.__cause__ else ""  # what broke a connection
                raise NotServed(f"ModelDeployment {deployment} does not answer: {error.message}{why}", hint) from error

    # -- parts ------------------------------------------------------------------------------------------------

    def _owner(self, resource: Resource) -> Owner:
        return Owner(resource.kind, resource.metadata.namespace or self.namespace, resource.name, "")

    async def _patch(self, resource: Resource, change: Object) -> None:
        namespace = resource.metadata.namespace or self.namespace
        path, query = path_of(resource.kind, namespace, resource.name), {"fieldManager": MANAGER}
        with answers.understood(resource.kind, resource.name, namespace):
            await self.connection.call("PATCH", path, change, query=query, content="application/merge-patch+json")

    async def _items(self, kind: str, namespace: str | None, fields: str = "") -> builtins.list[Object]:
        path = path_of(kind, namespace) if namespace else f"/apis/{API_VERSION}/{answers.PLURALS[kind]}"
        with answers.understood(kind, "", namespace or ""):
            found = await self.connection.call("GET", path, query={"fieldSelector": fields} if fields else None)
        return sorted(found["items"], key=lambda one: str(one["metadata"]["creationTimestamp"]))

    async def _elsewhere(self, kind: str, name: str, namespace: str) -> str:
        """Where a resource that was not found may be."""
        try:
            same = await self._items(kind, None, f"metadata.name={name}")
            if same:
                return f"there is one in namespace {same[0]['metadata']['namespace']}: add -n with that name"
            names = [one["metadata"]["name"] for one in await self._items(kind, namespace)]
        except Forbidden:
            return ""
        return answers.nearest(name, names, kind, namespace)


def _from_status(job: AnyResource) -> LogLine | None:
    progress = job.status.progress if isinstance(job, FineTuneJob) else None
    if progress is None or progress.loss is None:
        return None
    return LogLine(
        step=progress.step,
        total_steps=progress.total_steps,
        loss=progress.loss,
        learning_rate=progress.learning_rate or 0,
        tokens_per_second=progress.tokens_per_second or 0,
        mfu=progress.mfu,
        peak_memory_bytes=progress.peak_memory_bytes or 0,
        eta_seconds=progress.eta_seconds or 0,
    )
