"""The logs of a job's pods: all ranks, by attempt."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import re
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from tunesmith.children.meta import ATTEMPT_LABEL, Owner
from tunesmith.decide.pods import rank as rank_of
from tunesmith.kube.client import path_of
from tunesmith.kube.connection import ApiError, Connection, Object

LOOK_SECONDS = 1.0
AHEAD = 100
"""Lines that are read before somebody wants them: a line may have a megabyte."""
END = None
STAMP = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+\S+$")


@dataclass(frozen=True, order=True)
class LogEntry:
    """One line of one container."""

    time: str
    """RFC 3339, as the kubelet stamped it."""
    attempt: int
    rank: int
    pod: str
    container: str
    text: str


@dataclass(frozen=True)
class Stream:
    """A container whose log can be read."""

    pod: str
    container: str
    attempt: int
    rank: int
    pod_uid: str

    def entry(self, line: str) -> LogEntry:
        """A line that begins with its time."""
        time, _, text = line.partition(" ")
        return LogEntry(time, self.attempt, self.rank, self.pod, self.container, text)


@dataclass(frozen=True)
class Which:
    """What is read."""

    attempt: int | None = None
    """None: the newest and, where the log is followed, those that come."""
    rank: int | None = None
    every_attempt: bool = False


async def pods(connection: Connection, owner: Owner) -> list[Object]:
    """The pods of a resource's attempts."""
    query = {"labelSelector": owner.selector}
    found = await connection.call("GET", path_of("Pod", owner.namespace), query=query)
    items: list[Object] = found["items"]
    return items


def streams(found: list[Object], which: Which) -> list[Stream]:
    """The containers of the wanted attempts and ranks that have begun, in the order of ranks."""
    numbered = [(int(pod["metadata"].get("labels", {}).get(ATTEMPT_LABEL, 1)), pod) for pod in found]
    newest = max((number for number, _ in numbered), default=1)
    wanted = newest if which.attempt is None else which.attempt
    result = []
    for attempt, pod in sorted(numbered, key=lambda one: (one[0], rank_of(one[1]) or 0)):
        rank = rank_of(pod) or 0
        if (attempt != wanted and not which.every_attempt) or which.rank not in {None, rank}:
            continue
        meta = pod["metadata"]
        result += [Stream(meta["name"], name, attempt, rank, meta["uid"]) for name in begun(pod)]
    return result


def begun(pod: Mapping[str, Any]) -> Iterator[str]:
    """Names of the containers that run or ran."""
    status = pod.get("status", {})
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        if "waiting" not in container.get("state", {"waiting": {}}):
            yield container["name"]


def runs(found: list[Object], stream: Stream) -> bool:
    """Whether a container runs."""
    statuses = (
        status
        for pod in found
        if pod["metadata"]["uid"] == stream.pod_uid
        for part in ("initContainerStatuses", "containerStatuses")
        for status in pod.get("status", {}).get(part, ())
    )
    return any(one["name"] == stream.container and "running" in one.get("state", {}) for one in statuses)


async def read(
    connection: Connection, namespace: str, stream: Stream, tail: int | None = None
) -> AsyncGenerator[LogEntry, None]:
    """What is in a container's log now; nothing where it is gone."""
    query = {"container": stream.container, "timestamps": "true", **({"tailLines": str(tail)} if tail else {})}
    path = f"{path_of('Pod', namespace, stream.pod)}/log"
    try:
        async for line in connection.lines(path, query=query):
            yield stream.entry(line)
    except ApiError as error:
        if error.status not in {400, 404}:  # it does not run yet, or is gone
            raise


async def merged(
    connection: Connection, owner: Owner, which: Which, tail: int | None, most: int | None = None
) -> list[LogEntry]:
    """What is in all of the logs now, by attempt and time: the last `tail` lines of each, the last `most` of all."""
    newest: list[tuple[int, str, int, LogEntry]] = []
    count = itertools.count()

    async def take(stream: Stream) -> None:
        time = ""
        async for entry in read(connection, owner.namespace, stream, tail):
            time = entry.time if STAMP.match(entry.time) else time  # the rest of a line that is too long has none
            heapq.heappush(newest, (entry.attempt, time, next(count), entry))
            if most and len(newest) > most:
                heapq.heappop(newest)

    await asyncio.gather(*map(take, streams(await pods(connection, owner), which)))
    return [entry for *_, entry in sorted(newest)]


async def follow(
    connection: Connection, owner: Owner, which: Which, over: Callable[[], Any], tail: int | None
) -> AsyncGenerator[LogEntry, None]:
    """Lines as they come, of every container that begins, until `await over()` is true and all of them are read. A
    stream that breaks off, as when an API server restarts, goes on where it was. Who reads slowly holds the streams up.
    """
    queue: asyncio.Queue[LogEntry | Exception | None] = asyncio.Queue(AHEAD)
    tasks: dict[Stream, asyncio.Task[None]] = {}
    last: dict[Stream, str] = {}

    async def pump(stream: Stream) -> None:
        query = {"container": stream.container, "timestamps": "true", "follow": "true"}
        known = last.get(stream, "")
        if known:
            query["sinceTime"] = known
        elif tail:
            query["tailLines"] = str(tail)
        path = f"{path_of('Pod', owner.namespace, stream.pod)}/log"
        try:
            async for line in connection.lines(path, query=query):
                entry = stream.entry(line)
                if entry.time > known:
                    await queue.put(entry)
                    if STAMP.match(entry.time):  # the rest of a line that is too long has none
                        last[stream] = entry.time
        except ApiError as error:
            if error.status not in {400, 404}:
                await queue.put(error)
        except aiohttp.ClientError:
            return

    async def look() -> None:
        unread: set[Stream] = set()
        while True:
            ended = await over()
            found = await pods(connection, owner)
            for stream in streams(found, which):
                if stream not in tasks or (stream in unread and tasks[stream].done()):
                    tasks[stream] = asyncio.create_task(pump(stream))
            # What ran at this look may have written more than was read, whatever it does at the next one.
            unread = {stream for stream in streams(found, which) if stream in tasks and runs(found, stream)}
            if ended:
                await asyncio.gather(*tasks.values())
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def look_until_over() -> None:
        try:
            await look()
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(END)

    looking = asyncio.create_task(look_until_over())
    try:
        while (one := await queue.get()) is not END:
            if isinstance(one, Exception):
                raise one
            yield one
    finally:
        for task in (looking, *tasks.values()):
            task.cancel()
        await asyncio.gather(looking, *tasks.values(), return_exceptions=True)
