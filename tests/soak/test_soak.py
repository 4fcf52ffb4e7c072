"""A pod with a real vLLM for many minutes: 200 loads and unloads, swaps under 16 streams, kills of agent and engine.

Every token of every answer is held to what transformers and PEFT say offline. `make soak`; it prints what it saw.
"""

from __future__ import annotations

import json
import os
import platform
import random
import signal
import statistics
import threading
import time
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

import pytest
from serving.conftest import ENGINE_START, Forge, Pod, Process, until
from tunesmith import artifacts

pytestmark = [pytest.mark.trainer, pytest.mark.timeout(3600)]

LOADS = int(os.environ.get("SOAK_LOADS") or 200)
SEED = int(os.environ.get("SOAK_SEED") or 1)
OUT = os.environ.get("SOAK_OUT")
AT_ONCE = 5
STREAMS, TOKENS = 16, 48


@dataclass
class Answer:
    """One streamed answer to a client."""

    began: float
    status: int = 0
    tokens: list[int] = field(default_factory=list)
    ended: float = 0.0


def ask(pod: Pod) -> Answer:
    one = Answer(time.monotonic())
    try:
        with pod.stream("swapped", tokens=TOKENS) as response:
            for line in [response.first_line, *response]:  # type: ignore[attr-defined]
                if line.startswith(b"data: {"):
                    one.tokens += json.loads(line[6:])["choices"][0].get("token_ids") or []
                elif line.startswith(b"data: [DONE]"):  # http.client takes a broken stream for one that ended
                    one.status = response.status
    except HTTPError as error:
        with error:
            one.status = error.code
    except (OSError, HTTPException):
        one.status = 0  # nobody listened, or the connection broke
    one.ended = time.monotonic()
    return one


class Clients:
    """Threads that ask all the time, or twice a second while nobody answers."""

    def __init__(self, pod: Pod) -> None:
        self.pod = pod
        self.answers: list[Answer] = []
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self._ask) for _ in range(STREAMS)]

    def __enter__(self) -> Clients:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def _ask(self) -> None:
        while not self.stop.is_set():
            one = ask(self.pod)
            self.answers.append(one)
            if one.status != 200:
                self.stop.wait(0.5)


@dataclass
class Soak:
    pod: Pod
    versions: list[Path]
    """Of the adapter that the clients ask."""
    which: int = 0
    switches: list[tuple[float, float, int]] = field(default_factory=list)
    """(asked for, served, version)"""
    outages: list[tuple[float, float]] = field(default_factory=list)
    """(engine killed, adapters back)"""
    back: list[float] = field(default_factory=list)
    """Seconds from an engine that answers until all adapters are back."""

    def served(self, name: str, path: Path) -> bool:
        return self.pod.models().get(name, "").endswith(artifacts.digest(path))

    def swap(self, *, kill_agent_after: float | None = None) -> None:
        """To the other version; with the agent killed on the way and started again."""
        self.which = 1 - self.which
        path, begin = self.versions[self.which], time.monotonic()
        self.pod.want(swapped=path)
        if kill_agent_after is not None:
            time.sleep(kill_agent_after)
            self.pod.agent.stop(signal.SIGKILL)
            self.pod.agent.start()
        until(lambda: self.served("swapped", path), 60, "the new version is not served")
        if kill_agent_after is not None:
            until(lambda: self.pod.status()["ready"], 30, "the agent does not come back")
        self.pod.settle("swapped", seconds=30)
        self.switches.append((begin, time.monotonic(), self.which))

    def kill_engine(self, others: dict[str, Path]) -> None:
        begin = time.monotonic()
        self.pod.engine.stop(signal.SIGKILL)
        self.pod.engine.start()
        until(self.pod.up, ENGINE_START, "the engine does not come up")
        up = time.monotonic()
        wanted = {"swapped": self.versions[self.which], **others}
        until(lambda: all(self.served(name, path) for name, path in wanted.items()), 30, "adapters do not come back")
        self.back.append(time.monotonic() - up)
        self.outages.append((begin, time.monotonic()))

    def possible(self, one: Answer) -> set[int]:
        """The versions that may have answered: what was served when it was asked for, and what came until it ended."""
        served = [(0.0, 0.0, 0), *self.switches]
        last = max(n for n, (_, ready, _) in enumerate(served) if ready <= one.began)
        return {which for n, (asked, _, which) in enumerate(served) if n == last or (n > last and asked <= one.ended)}

    def during_an_outage(self, one: Answer) -> bool:
        return any(one.began <= end and one.ended >= begin for begin, end in self.outages)


def resident(process: Process) -> int:
    """MiB."""
    assert process.child is not None
    lines = Path(f"/proc/{process.child.pid}/status").read_text().splitlines()
    [found] = [line for line in lines if line.startswith("VmRSS")]
    return round(int(found.split()[1]) / 1024)


def test_adapters_come_go_and_change_for_long_and_no_token_is_wrong(pod: Pod, forge: Forge) -> None:
    dice = random.Random(SEED)
    soak = Soak(pod, [forge.adapter(pod.base, seed=90 + n) for n in range(2)])
    truth = {forge.say(pod.base, path, tokens=TOKENS): n for n, path in enumerate(soak.versions)}
    contents = [forge.adapter(pod.base, seed=100 + n, rank=dice.choice([4, 8, 16])) for n in range(8)]
    assert len({forge.say(pod.base, path) for path in contents}) == len(contents)
    pod.want(swapped=soak.versions[0])
    pod.settle("swapped")
    turns, loads, unloads, load_seconds = LOADS // AT_ONCE, 0, 0, list[float]()
    engine_kills = {n * turns // 5 for n in range(1, 5)}
    agent_kills = set(range(2, turns, max(turns // 10, 1))) - engine_kills
    began, memory = time.monotonic(), list[int]()
    with Clients(pod) as clients:
        for turn in range(turns):
            chosen = {f"a{n}": dice.choice(contents) for n in range(AT_ONCE)}
            start = time.monotonic()
            pod.want(**chosen)
            until(lambda: all(soak.served(name, path) for name, path in chosen.items()), 60)  # noqa: B023
            load_seconds.append(time.monotonic() - start)
            loads += len(chosen)
            if turn in engine_kills:
                soak.kill_engine(chosen)
            for name, path in chosen.items():
                assert pod.say(name) == forge.say(pod.base, path), f"turn {turn}: {name} is not what was loaded"
            if turn in agent_kills:
                soak.swap(kill_agent_after=dice.uniform(0, 0.3))
            elif turn % 2:
                soak.swap()
            pod.want(**dict.fromkeys(chosen))
            until(lambda: not chosen.keys() & pod.models().keys(), 30)  # noqa: B023
            unloads += len(chosen)
            memory.append(resident(pod.agent))
    lasted = time.monotonic() - began

    outside = [one for one in clients.answers if not soak.during_an_outage(one)]
    whole = [one for one in clients.answers if one.status == 200]
    figures = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "minutes": round(lasted / 60, 1),
        "loads": loads,
        "unloads": unloads,
        f"{AT_ONCE} adapters wanted -> all served (s), median and most": [
            round(statistics.median(load_seconds), 2),
            round(max(load_seconds), 2),
        ],
        "swaps under load": len(soak.switches),
        "agents killed in the middle of a swap": len(agent_kills),
        "engines killed": len(soak.outages),
        "engine up -> all adapters back (s)": [round(seconds, 2) for seconds in soak.back],
        "streams": len(clients.answers),
        "of them answered": len(whole),
        "broken or refused while an engine was down": len(clients.answers) - len(outside),
        "refused otherwise": sum(one.status != 200 for one in outside),
        "tokens compared": sum(len(one.tokens) for one in clients.answers),
        "longest stream (s)": round(max(one.ended - one.began for one in outside), 1),
        "agent's memory after the first turn and the last (MiB)": [memory[0], memory[-1]],
    }
    text = json.dumps(figures, indent=1)
    print(f"\n{text}")
    if OUT:
        Path(OUT, "soak.json").write_text(text + "\n")
    assert loads == unloads == LOADS
    assert {one.status for one in outside} == {200}
    for one in clients.answers:
        given = tuple(one.tokens)
        assert one.status != 200 or len(given) == TOKENS
        by = {version for said, version in truth.items() if said[: len(given)] == given}
        assert by, "tokens that neither version gives"
        assert by & soak.possible(one), "answered by a version that was not served then"
    # What was unloaded is gone from the disk, once the requests that began with it are.
    kept = {"first", "swapped"}
    until(lambda: {path.name for path in pod.store.iterdir() if not path.name.startswith(".")} <= kept, 30)
    until(lambda: sum(path.is_dir() for path in (pod.store / "swapped").iterdir()) == 1, 30)
