"""How fast 50 pods follow 1,000 adapters, and what that costs the operator: `make benchmark-serving`.

Real: etcd, API server, controllers, scheduler, the operator's process, the agents' and the guard's code. Played: a node
and its kubelet (as kwok does it), and vLLM, by the small engine of tests/fleet, which tests/serving/test_contract.py
holds to vLLM's answers. See README.md.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
from fleet.conftest import FLEET
from integration.harness import Kubectl, operator, own_namespace
from tunesmith.kube.connection import ApiError, Connection
from tunesmith_cluster import Cluster, build, controlplane, credentials, network
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.processes import Supervisor
from unit.agent.builders import make, make_base, pair

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NODE = "benchmark"
WORKERS = 4
MERGE = "application/merge-patch+json"


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass
class Log:
    """What the engines said."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    has: dict[str, dict[str, str]] = field(default_factory=dict)
    """Pod's UID -> adapter -> digest."""

    def take(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        mine = self.has.setdefault(line["uid"], {})
        if "loaded" in line:
            mine[line["loaded"]] = line["digest"]
        elif "unloaded" in line:
            mine.pop(line["unloaded"], None)
        elif "restarted" in line:
            mine.clear()

    def when(self, since: int, **wanted: Any) -> list[float]:
        """The times of the events since line `since` that are as wanted."""
        return [x["at"] for x in self.lines[since:] if all(x.get(k) == v for k, v in wanted.items())]


class Node:
    """A node whose kubelet this is. Its pods run in a few processes of this machine."""

    def __init__(self, api: Connection, folder: Path, options: argparse.Namespace) -> None:
        self.api, self.folder, self.options = api, folder, options
        self.log = Log()
        self.children: list[asyncio.subprocess.Process] = []
        self.pods: dict[str, dict[str, Any]] = {}
        self.ips: dict[str, str] = {}
        self.ready: dict[str, bool] = {}
        self.state = folder / "state.json"
        (folder / "token").touch()

    async def __aenter__(self) -> Node:
        body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}
        await self.api.call("POST", "/api/v1/nodes", body)
        room = {"cpu": "1000", "memory": "4Ti", "pods": "500", "ephemeral-storage": "4Ti"}
        conditions = [{"type": "Ready", "status": "True", "reason": "Played", "lastHeartbeatTime": now()}]
        status = {"status": {"capacity": room, "allocatable": room, "conditions": conditions}}
        await self.api.call("PATCH", f"/api/v1/nodes/{NODE}/status", status, content=MERGE)
        environment = {**os.environ, "TUNESMITH_ADMIN_TOKEN_FILE": str(self.folder / "token")}
        for _ in range(WORKERS):
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, str(HERE / "pods.py")),
                env=environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=2**20,
            )
            self.children.append(child)
        self.tasks = [
            asyncio.create_task(one) for one in (self._lease(), self._kubelet(), *map(self._hear, self.children))
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self.tasks:
            task.cancel()
        for child in self.children:
            child.kill()
            await child.wait()

    async def _hear(self, child: asyncio.subprocess.Process) -> None:
        assert child.stdout is not None
        while line := await child.stdout.readline():
            self.log.take(json.loads(line))
        raise RuntimeError("a process with pods ended")

    async def _lease(self) -> None:
        """The node's heartbeat: without it, its pods would be evicted."""
        path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        spec = {"holderIdentity": NODE, "leaseDurationSeconds": 40}
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": NODE}}
        await self.api.call("POST", path, {**body, "spec": {**spec, "renewTime": now()}})
        while True:
            patch = {"spec": {**spec, "renewTime": now()}}
            await self.api.call("PATCH", f"{path}/{NODE}", patch, content=MERGE)
            await asyncio.sleep(10)

    async def _kubelet(self) -> None:
        """Start what is bound to the node, and say whether it is ready, once a second."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as http:
            while True:
                found = await self.api.call("GET", "/api/v1/pods", query={"fieldSelector": f"spec.nodeName={NODE}"})
                await self._follow(found["items"])
                await asyncio.gather(*(self._probe(http, uid) for uid in self.pods))
                await asyncio.sleep(1)

    async def _follow(self, items: list[dict[str, Any]]) -> None:
        for pod in items:
            meta = pod["metadata"]
            path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
            if "deletionTimestamp" in meta:
                with contextlib.suppress(ApiError):
                    await self.api.call("DELETE", path, {"gracePeriodSeconds": 0})
                self.pods.pop(meta["uid"], None)
            elif meta["uid"] not in self.pods:
                await self._mount(pod)
                number = len(self.ips) + 1
                ip = self.ips[meta["uid"]] = f"127.77.{number // 250}.{number % 250 + 1}"
                self.pods[meta["uid"]] = pod
                await self.tell(meta["uid"], ip=ip)
                await self._say(meta["uid"], ready=False)

    async def _mount(self, pod: dict[str, Any]) -> None:
        """The ConfigMap and the Secret, as they are when the pod starts. What comes later, the operator sends."""
        prefix = f"/api/v1/namespaces/{pod['metadata']['namespace']}"
        state = await self.api.call("GET", f"{prefix}/configmaps/x-adapters")
        secret = await self.api.call("GET", f"{prefix}/secrets/x-admin")
        self._write(self.folder / "token", base64.b64decode(secret["data"]["token"]))
        self._write(self.state, state["data"]["state.json"].encode())

    def _write(self, path: Path, data: bytes) -> None:
        """At once, as the kubelet does it: the pods that run already read the same file."""
        draft = path.with_suffix(".tmp")
        draft.write_bytes(data)
        draft.rename(path)

    async def tell(self, uid: str, **order: Any) -> None:
        """Send an order to the process that runs the pod."""
        number = int(self.ips[uid].rsplit(".", 1)[1]) % WORKERS
        order |= {
            "uid": uid,
            "folder": str(self.folder / uid),
            "state": str(self.state),
            "token": str(self.folder / "token"),
            "model": str(self.folder / "base"),
            "resync": self.options.resync,
        }
        stdin = self.children[number].stdin
        assert stdin is not None
        stdin.write(json.dumps(order).encode() + b"\n")
        await stdin.drain()

    async def _probe(self, http: aiohttp.ClientSession, uid: str) -> None:
        try:
            async with http.get(f"http://{self.ips[uid]}:9500/readyz") as response:
                ready = response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            ready = False
        if self.ready.get(uid) != ready:
            await self._say(uid, ready=ready)

    async def _say(self, uid: str, *, ready: bool) -> None:
        meta, ip = self.pods[uid]["metadata"], self.ips[uid]
        word = "True" if ready else "False"
        conditions = [{"type": t, "status": word, "lastTransitionTime": now()} for t in ("Ready", "ContainersReady")]
        engine = {"name": "engine", "ready": ready, "started": True, "restartCount": 0, "image": "x", "imageID": "x"}
        engine["state"] = {"running": {"startedAt": now()}}
        status = {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "startTime": now(),
            "conditions": conditions,
            "containerStatuses": [engine],
        }
        path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/status"
        with contextlib.suppress(ApiError):  # it may be gone
            await self.api.call("PATCH", path, {"status": status}, content="application/strategic-merge-patch+json")
            self.ready[uid] = ready


class Bench:
    """One deployment and what is measured of it."""

    def __init__(self, api: Connection, node: Node, kubectl: Kubectl, folder: Path, process: int, size: int) -> None:
        self.api, self.node, self.kubectl, self.folder, self.process, self.size = (
            api,
            node,
            kubectl,
            folder,
            process,
            size,
        )
        self.path = f"/apis/tunesmith.io/v1alpha1/namespaces/{kubectl.namespace}/modeldeployments/x"
        self.uris = {f"a{n:04}": self.version(f"a{n:04}", 0) for n in range(size)}
        self.rounds = 0

    def version(self, name: str, number: int) -> str:
        """An adapter's folder, with content of its own."""
        folder = make(self.folder / "adapters" / f"{name}-{number}", pair())
        weights = folder / "adapter_model.safetensors"
        data = bytearray(weights.read_bytes())
        mark = f"{name}-{number}".encode()
        data[-len(mark) :] = mark
        weights.write_bytes(data)
        return f"file://{folder}"

    def adapters(self) -> list[dict[str, Any]]:
        return [{"name": name, "uri": uri} for name, uri in self.uris.items()]

    async def apply(self, **spec: Any) -> float:
        """Write the adapters into the spec. Returns when the API server had taken it."""
        patch = {"spec": {"adapters": self.adapters(), **spec}}
        await self.api.call("PATCH", self.path, patch, content=MERGE)
        return time.time()

    async def status(self) -> dict[str, Any]:
        return dict((await self.api.call("GET", self.path)).get("status", {}))

    async def until(self, done: Callable[[], bool], seconds: float) -> None:
        end = time.monotonic() + seconds
        while not done():
            if time.monotonic() > end:
                raise TimeoutError(json.dumps({k: v for k, v in (await self.status()).items() if k != "adapters"}))
            await asyncio.sleep(0.02)

    async def settled(self, seconds: float) -> float:
        """Until the status says that all pods serve all adapters."""
        end = time.monotonic() + seconds
        while True:
            status = await self.status()
            words = {c["type"]: c["reason"] for c in status.get("conditions", [])}
            if (
                words.get("AdaptersReady") == "AdaptersReady"
                and status["adaptersSummary"] == f"{len(self.uris)}/{len(self.uris)}"
            ):
                return time.time()
            if time.monotonic() > end:
                raise TimeoutError(str(status.get("conditions")))
            await asyncio.sleep(0.1)

    async def reaction(self, name: str, uri: str | None) -> tuple[list[float], float]:
        """Change one adapter: (seconds until each pod's engine has it, seconds until the status says so)."""
        since, pods = len(self.node.log.lines), len(self.node.pods)
        if uri is None:
            del self.uris[name]
        else:
            self.uris[name] = uri
        begin = await self.apply()
        event = {"unloaded": name} if uri is None else {"loaded": name}
        await self.until(lambda: len(self.node.log.when(since, **event)) >= pods, 600)
        times = [at - begin for at in self.node.log.when(since, **event)]
        return times, await self.settled(600) - begin

    def memory(self) -> tuple[float, float]:
        """(now, most) resident MiB of the operator."""
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{self.process}/status").read_text().splitlines())
        return tuple(int(lines[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))  # type: ignore[return-value]

    def seconds(self) -> float:
        """CPU seconds that the operator has used."""
        fields = Path(f"/proc/{self.process}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def spread(times: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return {"p50": round(cuts[49], 2), "p99": round(cuts[98], 2), "max": round(max(times), 2), "n": len(times)}


async def measure(bench: Bench, options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Fill `found` with figures."""
    pods, size = options.pods, bench.size
    body = {"replicas": pods, "adapterRollout": {"maxUnavailable": options.max_unavailable}}
    begin = time.time()
    await bench.apply(**body)
    await bench.settled(3600)
    found["all loaded, first time (s)"] = round(time.time() - begin, 1)
    print(f"{size} adapters on {pods} pods after {found['all loaded, first time (s)']} s", flush=True)

    await asyncio.sleep(5)
    before, start = bench.seconds(), time.monotonic()
    await asyncio.sleep(options.idle)
    found["operator idle (cores)"] = round((bench.seconds() - before) / (time.monotonic() - start), 3)

    added, said, changed, rolled, removed = [], [], [], [], []
    for number in range(options.rounds):
        times, status = await bench.reaction(f"new{number}", bench.version(f"new{number}", 0))
        added, said = [*added, *times], [*said, status]
        times, _ = await bench.reaction(f"new{number}", None)
        removed += times
        name = f"a{number * 7 % size:04}"
        times, status = await bench.reaction(name, bench.version(name, number + 1))
        changed, rolled = [*changed, *times], [*rolled, status]
        print(f"round {number}: added {max(added[-pods:]):.2f} s, changed {max(changed[-pods:]):.2f} s", flush=True)
    found["adapter added -> served by a pod (s)"] = spread(added)
    found["adapter added -> Ready in the status (s)"] = spread(said)
    found["adapter removed -> gone from a pod (s)"] = spread(removed)
    found["version changed -> served by a pod (s)"] = spread(changed)
    found["version changed -> rolled out over all pods (s)"] = spread(rolled)

    back = []
    for uid in list(bench.node.pods)[:3]:
        since = len(bench.node.log.lines)
        await bench.node.tell(uid, restart=True)
        await bench.until(lambda: len(bench.node.log.when(since, uid=uid, restarted=True)) == 1, 30)  # noqa: B023
        begin = bench.node.log.when(since, uid=uid, restarted=True)[0]
        await bench.until(lambda: len(bench.node.log.has[uid]) >= len(bench.uris), 600)  # noqa: B023
        back.append(time.time() - begin)
    found[f"engine restarted -> all {len(bench.uris)} adapters back (s)"] = [round(one, 2) for one in back]
    found["operator memory (MiB)"] = dict(zip(("now", "most"), map(round, bench.memory()), strict=True))
    config = await bench.api.call("GET", f"/api/v1/namespaces/{bench.kubectl.namespace}/configmaps/x-adapters")
    found["state.json (KiB; a ConfigMap holds 1024)"] = round(len(config["data"]["state.json"]) / 1024)
    resource = await bench.api.call("GET", bench.path)
    found["resource in the API server (KiB; etcd takes 1536)"] = round(
        len(json.dumps(resource, separators=(",", ":"))) / 1024
    )
    found["of it status (KiB)"] = round(len(json.dumps(resource["status"], separators=(",", ":"))) / 1024)


@contextlib.contextmanager
def control_plane(paths: Paths) -> Iterator[Cluster]:
    """etcd, API server, controllers and scheduler of the test cluster, in this process's own network namespace."""
    if [name for _, name in socket.if_nameindex()] != ["lo"]:
        sys.exit("this needs a network namespace of its own: make benchmark-serving")
    if not all(build.is_built(paths.cache, module) for module in build.MODULES):
        sys.exit("the cluster's binaries are not built yet: make up, once")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "address", "add", f"{network.HOST_IP}/32", "dev", "lo"], check=True)
    paths.state.mkdir()
    credentials.ensure_all(paths, [])
    for path, text in controlplane.files(paths).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    supervisor = Supervisor(paths.pids, paths.logs)
    services = [service for service in controlplane.services_before_nodes(paths) if service.name != "coredns"]
    try:
        for service in services:
            supervisor.start(service)
            supervisor.wait_ready(service)
        yield Cluster(paths)
    finally:
        for service in reversed(services):
            supervisor.stop(service.name)


@contextlib.asynccontextmanager
async def benched(cluster: Cluster, folder: Path, options: argparse.Namespace) -> AsyncIterator[Bench]:
    with own_namespace(cluster, "benchmark") as kubectl:
        kubectl("delete", "pvc", "tunesmith-store")  # the node has no volumes
        make_base(folder / "base")
        kubectl.apply(
            {
                "apiVersion": "tunesmith.io/v1alpha1",
                "kind": "ModelDeployment",
                "metadata": {"name": "x"},
                "spec": {
                    "model": {"uri": f"file://{folder / 'base'}"},
                    "replicas": 0,
                    "engine": {"maxCpuLoras": 2048},
                },
            }
        )
        with operator(cluster, kubectl.namespace, folder / "operator.log", settings=FLEET) as process:
            async with Connection(str(cluster.kubeconfig)) as api, Node(api, folder, options) as node:
                yield Bench(api, node, kubectl, folder, process.pid, options.adapters)


def install_crds(cluster: Cluster) -> None:
    """The kinds, as this checkout has them."""
    command = [cluster.binary("kubectl"), "apply", "--server-side", "--force-conflicts", "-f", ROOT / "crds"]
    subprocess.run(command, check=True, capture_output=True)


async def run(options: argparse.Namespace) -> None:
    folder = Path(tempfile.mkdtemp(prefix="benchmark-serving-"))
    found: dict[str, Any] = {
        "adapters": options.adapters,
        "pods": options.pods,
        "rounds": options.rounds,
        "adapterRollout.maxUnavailable": options.max_unavailable,
        "agents' resync (s)": options.resync,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }
    try:
        with control_plane(Paths(Paths.from_environment().cache, folder / "cluster")) as cluster:
            os.environ["KUBECONFIG"] = str(cluster.kubeconfig)
            install_crds(cluster)
            async with benched(cluster, folder, options) as bench:
                await measure(bench, options, found)
    finally:
        log = (folder / "operator.log").read_text() if (folder / "operator.log").exists() else ""
        shutil.rmtree(folder, ignore_errors=True)
        print(log[-3000:] if "Traceback" in log or sys.exc_info()[0] else "", flush=True)
        print(json.dumps(found, indent=1), flush=True)  # as far as it came
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--pods", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--max-unavailable", type=int, default=10)
    parser.add_argument(
        "--resync", type=float, default=120, help="on one machine, 50 agents' share of each second is small"
    )
    parser.add_argument("--idle", type=float, default=30)
    parser.add_argument("--out", type=Path)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # also then nothing is left
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
