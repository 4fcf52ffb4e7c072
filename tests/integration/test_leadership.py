"""Two replicas: whatever becomes of the leader, the other leads within 15 s, and nothing is done twice."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import yaml
from integration.harness import Kubectl, eventually, operator, train
from tunesmith_cluster import Cluster

TAKEOVER_SECONDS = 15


class Link:
    """A connection to the API server through a port of this machine, which can be cut like a cable."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = self.server.getsockname()[1]
        self.is_cut = False
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_until_complete, args=(self._serve(),), daemon=True)
        self.thread.start()

    async def _serve(self) -> None:
        self.ended = asyncio.Event()
        async with await asyncio.start_server(self._connect, sock=self.server):
            await self.ended.wait()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self.target)
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            while self.is_cut:  # packets vanish: nobody is told that the connection is over
                if self.ended.is_set():
                    return
                await asyncio.sleep(0.1)
            writer.write(data)
        writer.close()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.ended.set)
        self.thread.join(5)


@contextmanager
def link(cluster: Cluster, folder: Path) -> Iterator[tuple[Link, Path]]:
    """A link, and a kubeconfig that goes through it."""
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    server = config["clusters"][0]["cluster"]["server"]
    host, port = server.removeprefix("https://").split(":")
    cable = Link((host, int(port)))
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{cable.port}"
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    try:
        yield cable, path
    finally:
        cable.close()


def holder(kubectl: Kubectl) -> str:
    lease: str = kubectl.get("lease", "tunesmith-operator")["spec"]["holderIdentity"]
    return lease


def creations(cluster: Cluster, namespace: str, resource: str) -> list[int]:
    """HTTP status of every creation in the namespace, by the API server's audit log."""
    found = []
    for line in (cluster.paths.logs / "audit.log").read_text().splitlines():
        event = json.loads(line)
        ref = event.get("objectRef") or {}
        if event["verb"] == "create" and ref.get("namespace") == namespace and ref.get("resource") == resource:
            found.append(event["responseStatus"]["code"])
    return found


@pytest.mark.parametrize("fate", ["terminated", "killed", "stopped", "cut off"])
def test_the_standby_leads_whatever_becomes_of_the_leader(
    cluster: Cluster, kubectl: Kubectl, tmp_path: Path, fate: str
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with ExitStack() as stack:
        cable, kubeconfig = stack.enter_context(link(cluster, tmp_path))
        leader = stack.enter_context(operator(cluster, kubectl.namespace, first, kubeconfig))
        eventually(lambda: "leading" in first.read_text(), first.read_text)
        old = holder(kubectl)
        stack.enter_context(operator(cluster, kubectl.namespace, second))
        eventually(lambda: "another replica leads" in second.read_text(), second.read_text)
        kubectl.apply(train("before", "hang", memory={"check": "Disabled"}))
        kubectl.wait("finetunejob", "before", "Running")
        fates: dict[str, Callable[[], object]] = {
            "terminated": leader.terminate,
            "killed": leader.kill,
            "stopped": lambda: leader.send_signal(signal.SIGSTOP),
            "cut off": lambda: setattr(cable, "is_cut", True),
        }
        fates[fate]()
        eventually(lambda: holder(kubectl) not in {old, ""}, second.read_text, TAKEOVER_SECONDS)
        kubectl.apply(train("after", memory={"check": "Disabled"}))
        kubectl.wait("finetunejob", "after", "Completed")
        leader.send_signal(signal.SIGCONT) if fate == "stopped" else None
        if fate in {"stopped", "cut off"}:
            assert leader.wait(30) == 1, first.read_text()
            assert "Lease" in first.read_text()
        assert kubectl.names("job") == ["after-train-1", "before-train-1"]
        assert creations(cluster, kubectl.namespace, "jobs") == [201, 201]
        assert kubectl.condition("finetunejob", "before")["reason"] == "Running"
