"""Many pods of ModelDeployments on the test cluster: the real operator, agents and guards, and small engines."""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from integration.harness import SETTINGS, Kubectl, clean_operator, eventually, own_namespace, prepare, serve
from tunesmith_cluster import Cluster
from unit.agent.builders import make, make_base, pair

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
IMAGE = "tunesmith-fleet:1"
STORE = "pvc://tunesmith-store"
FLEET = SETTINGS.model_copy(update={"operator_image": IMAGE, "engine_image": IMAGE})


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    cluster = Cluster()
    cluster.up()
    cluster.load_image(
        IMAGE,
        copies=[(HERE / "app" / "vllm", "/app/vllm"), (ROOT / "operator/src/tunesmith", "/app/tunesmith")],
        environment={"PATH": f"{sys.prefix}/bin:/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
        working_directory="/app",
    )
    prepare(cluster)
    return cluster


@pytest.fixture
def kubectl(cluster: Cluster) -> Iterator[Kubectl]:
    with own_namespace(cluster, "fleet") as kubectl:
        yield kubectl


@dataclass
class Answer:
    began: float
    status: int
    said: tuple[str, ...] = ()
    ended: float = 0.0
    error: str = ""


@dataclass
class Fleet:
    """One ModelDeployment, and the store that it is served from."""

    cluster: Cluster
    kubectl: Kubectl
    log: Path
    stopped: Callable[[], None] = lambda: None

    @contextmanager
    def operator(self) -> Iterator[None]:
        with clean_operator(self.cluster, self.kubectl.namespace, self.log, FLEET) as process:
            self.stopped = lambda: (process.kill(), process.wait())  # type: ignore[assignment, return-value]
            yield

    @property
    def store(self) -> Path:
        """The claim's folder on this machine."""
        claim = eventually(
            lambda: self.kubectl.get("pvc", "tunesmith-store")["spec"].get("volumeName"), lambda: "no volume"
        )
        [path] = self.cluster.paths.volumes.glob(f"*{claim}*")
        return path

    def adapter(self, name: str, **config: Any) -> str:
        """An adapter in the store, of its own content; its address."""
        folder = make(self.store / name, pair(rank=config.get("r", 8)), **config)
        weights = folder / "adapter_model.safetensors"
        data = bytearray(weights.read_bytes())
        data[-len(name) :] = name.encode()
        weights.write_bytes(data)
        return f"{STORE}/{name}"

    def apply(self, *adapters: dict[str, Any], **spec: Any) -> None:
        engine = {"drainSeconds": 3, "shutdownTimeoutSeconds": 20, **spec.pop("engine", {})}
        resources = {"requests": {"cpu": "10m"}, "limits": {"memory": "256Mi"}}
        model = {"uri": f"{STORE}/base"}
        body = serve("chat", model=model, adapters=list(adapters), engine=engine, resources=resources, **spec)
        self.kubectl.apply(body)

    def status(self) -> dict[str, Any]:
        return dict(self.kubectl.get("mdep", "chat").get("status", {}))

    def adapter_status(self, name: str) -> dict[str, Any]:
        return next((a for a in self.status().get("adapters", []) if a["name"] == name), {})

    def wait(self, reason: str, type_: str = "Ready", seconds: float = 90) -> None:
        self.kubectl.wait("mdep", "chat", reason, type_, seconds)

    def wait_for(self, name: str, seconds: float = 60, **wanted: Any) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            found = self.adapter_status(name)
            return found if all(found.get(key) == value for key, value in wanted.items()) else None

        return eventually(look, lambda: json.dumps(self.status(), indent=1), seconds)

    def pods(self) -> list[dict[str, Any]]:
        items = json.loads(self.kubectl("get", "pod", "-l", "tunesmith.io/name=chat", "-o", "json"))["items"]
        return [pod for pod in items if "deletionTimestamp" not in pod["metadata"]]

    def address(self, service: str = "chat") -> str:
        return f"http://{self.kubectl.get('service', service)['spec']['clusterIP']}"

    def roots(self, pod: dict[str, Any]) -> dict[str, str]:
        """What a pod's engine serves: adapter -> digest."""
        try:
            with urllib.request.urlopen(
                f"http://{pod['status'].get('podIP', '127.0.0.1')}:8000/v1/models", timeout=5
            ) as response:
                cards = json.loads(response.read())["data"]
        except OSError:
            return {}
        return {card["id"]: card["root"].rsplit("/", 1)[1] for card in cards if card["parent"]}

    def healthy(self, pod: dict[str, Any]) -> bool:
        try:
            with urllib.request.urlopen(f"http://{pod['status']['podIP']}:8000/health", timeout=5):
                return True
        except OSError:
            return False

    def ask(self, model: str, service: str = "chat") -> Answer:
        return stream(f"{self.address(service)}/v1/completions", model, 1)

    @contextmanager
    def load(self, model: str, streams: int = 8, tokens: int = 20, service: str = "chat") -> Iterator[list[Answer]]:
        """Clients that ask all the time, each with a new connection."""
        stop, answers, url = threading.Event(), list[Answer](), f"{self.address(service)}/v1/completions"

        def ask() -> None:
            while not stop.is_set():
                answers.append(stream(url, model, tokens))

        threads = [threading.Thread(target=ask) for _ in range(streams)]
        for thread in threads:
            thread.start()
        try:
            yield answers
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def stream(url: str, model: str, tokens: int) -> Answer:
    began, said = time.monotonic(), list[str]()
    body = json.dumps({"model": model, "prompt": "x", "max_tokens": tokens, "stream": True}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            for line in response:
                if line.startswith(b"data: {"):
                    said.append(json.loads(line[6:])["choices"][0]["text"].strip())
        return Answer(began, 200, tuple(said), time.monotonic())
    except urllib.error.HTTPError as error:
        return Answer(began, error.code, tuple(said), time.monotonic(), error.read().decode())
    except OSError as error:
        return Answer(began, 0, tuple(said), time.monotonic(), repr(error))


@pytest.fixture
def fleet(cluster: Cluster, kubectl: Kubectl, tmp_path: Path) -> Iterator[Fleet]:
    """A deployment of one pod, with a base and no adapters yet, and an operator that runs."""
    one = Fleet(cluster, kubectl, tmp_path / "operator.log")
    with one.operator():
        one.apply()  # the first pod has the volume made
        make_base(one.store / "base")
        yield one
