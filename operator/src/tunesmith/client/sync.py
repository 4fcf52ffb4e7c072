"""The same client without async: each call runs on an event loop of the client's own, in a thread, so that it also
works where a loop runs already, as in a notebook.
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from threading import Thread
from typing import Any, Self, TypeVar, overload

from tunesmith.client.aio import AsyncClient, Messages, R
from tunesmith.client.curves import Curve
from tunesmith.client.logs import LogEntry
from tunesmith.client.resources import AnyJob, AnyResource, FineTuneJob, Resource
from tunesmith.training.logline import LogLine

T = TypeVar("T")


class Client:
    """Everything that a user does with the kinds of tunesmith. `close` it, or use it as `with Client() as client`.

    Methods and their errors are those of AsyncClient.
    """

    def __init__(
        self, namespace: str | None = None, *, context: str | None = None, kubeconfig: str | None = None
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="tunesmith-client", daemon=True)
        self._thread.start()
        self.aio = AsyncClient(namespace, context=context, kubeconfig=kubeconfig)
        try:
            self.run(self.aio.__aenter__())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._loop.is_closed():
            return
        self.run(self.aio.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def namespace(self) -> str:
        """The namespace that is worked in."""
        return self.aio.namespace

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The outcome of a coroutine. Where this thread is interrupted, the work is, too."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """What an asynchronous iterator yields."""
        end: Any = object()

        async def following() -> T:
            found: T = await anext(items, end)
            return found

        try:
            while (one := self.run(following())) is not end:
                yield one
        finally:
            if hasattr(items, "aclose"):
                self.run(items.aclose())

    @overload
    def submit(self, resource: R, *, force: bool = ..., dry_run: bool = ...) -> R: ...
    @overload
    def submit(self, resource: Mapping[str, Any], *, force: bool = ..., dry_run: bool = ...) -> AnyResource: ...
    def submit(self, resource: Resource | Mapping[str, Any], *, force: bool = False, dry_run: bool = False) -> Resource:
        """Make or change a resource by server-side apply."""
        return self.run(self.aio.submit(resource, force=force, dry_run=dry_run))  # type: ignore[arg-type]

    def apply(self, body: dict[str, Any], *, force: bool = False) -> dict[str, Any]:
        """Make or change an object that jobs use: a ConfigMap, a claim, a Secret."""
        return self.run(self.aio.apply(body, force=force))

    def get(self, kind: type[R], name: str, namespace: str | None = None) -> R:
        """One resource."""
        return self.run(self.aio.get(kind, name, namespace))

    def refresh(self, resource: Resource) -> AnyResource:
        """The resource as it is now."""
        return self.run(self.aio.refresh(resource))

    def find(self, name: str, namespace: str | None = None) -> AnyResource:
        """The resource of this name, of whichever kind."""
        return self.run(self.aio.find(name, namespace))

    def list(self, kind: type[R], namespace: str | None = None, *, everywhere: bool = False) -> builtins.list[R]:
        """All resources of a kind."""
        return self.run(self.aio.list(kind, namespace, everywhere=everywhere))

    def wait(self, resource: Resource, seconds: float | None = None) -> AnyResource:
        """Until a job succeeded, or a deployment is Ready."""
        return self.run(self.aio.wait(resource, seconds))

    def watch(self, resource: Resource, *, seconds: float | None = None) -> Iterator[AnyResource]:
        """The resource whenever it has changed, until it is over."""
        return self.iterate(self.aio.watch(resource, seconds=seconds))

    def suspend(self, job: AnyJob) -> None:
        """Checkpoint, end the pods, and free what they hold."""
        self.run(self.aio.suspend(job))

    def resume(self, job: AnyJob) -> None:
        """Go on from the checkpoint."""
        self.run(self.aio.resume(job))

    def retry(self, job: AnyJob, name: str | None = None) -> AnyResource:
        """Run a job that is over once more, from its beginning."""
        return self.run(self.aio.retry(job, name))

    def delete(self, resource: Resource, *, wait: bool = False) -> None:
        """Delete a resource and its pods."""
        self.run(self.aio.delete(resource, wait=wait))

    def logs(
        self,
        resource: Resource,
        *,
        attempt: int | None = None,
        rank: int | None = None,
        follow: bool = False,
        tail: int | None = None,
        most: int | None = None,
    ) -> Iterator[LogEntry]:
        """The lines of all ranks by time."""
        return self.iterate(self.aio.logs(resource, attempt=attempt, rank=rank, follow=follow, tail=tail, most=most))

    def stream_metrics(self, job: FineTuneJob, *, follow: bool = True) -> Iterator[LogLine]:
        """The lines of the training's log as they come."""
        return self.iterate(self.aio.stream_metrics(job, follow=follow))

    def curve(self, job: FineTuneJob) -> Curve:
        """What the job has logged so far."""
        return self.run(self.aio.curve(job))

    @contextmanager
    def endpoint(self, deployment: str, namespace: str | None = None) -> Iterator[str]:
        """The address of a deployment's OpenAI API on this machine, while the block runs, for any client."""
        relay = self.aio.endpoint(deployment, namespace)
        url = self.run(relay.__aenter__())
        try:
            yield url
        finally:
            self.run(relay.__aexit__(None, None, None))

    def chat(self, deployment: str, messages: Messages, *, model: str | None = None, **options: Any) -> Iterator[str]:
        """The answer, piece by piece."""
        return self.iterate(self.aio.chat(deployment, messages, model=model, **options))
