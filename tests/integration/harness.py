"""kubectl, the operator's process, and the resources that the tests apply."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import aiohttp
from tunesmith.apply import Applier
from tunesmith.kube.client import Client
from tunesmith.observe import Observer
from tunesmith.reconcile import Reconciler
from tunesmith.settings import Settings
from tunesmith.training import architecture
from tunesmith_cluster import Cluster, build, workloads
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.progress import Reporter

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
IMAGE = "tunesmith-scripted:1"
SETTINGS = Settings(trainer_image=IMAGE, engine_image=IMAGE, operator_image=IMAGE, poll_seconds=0.5, progress_seconds=0)
# Longer than a pod's grace period: a process that is its container's first and has no handler yet ignores SIGTERM.
WAIT_SECONDS = 180
# Of Qwen2.5-7B's config.json.
QWEN2_7B = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


class Kubectl:
    """kubectl in one namespace."""

    def __init__(self, binary: Path, namespace: str, kubeconfig: Path | None = None) -> None:
        self.binary, self.namespace = binary, namespace
        self.options = [f"--kubeconfig={kubeconfig}"] if kubeconfig else []

    def __call__(self, *arguments: str, stdin: object = None, check: bool = True) -> str:
        done = subprocess.run(
            [self.binary, "-n", self.namespace, *self.options, *arguments],
            input=None if stdin is None else json.dumps(stdin),
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr}")
        return done.stdout if check else done.stdout + done.stderr

    def apply(self, *objects: dict[str, Any]) -> None:
        for body in objects:
            self("apply", "-f", "-", stdin=body)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self("get", kind, name, "-o", "json"))
        return result

    def list(self, kind: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = json.loads(self("get", kind, "-o", "json"))["items"]
        return items

    def names(self, kind: str) -> list[str]:
        return sorted(item["metadata"]["name"] for item in self.list(kind))

    def wait_for_pods(self, number: int) -> None:
        """Until that many pods run."""
        eventually(
            lambda: sum(pod["status"].get("phase") == "Running" for pod in self.list("pod")) == number,
            lambda: self("get", "pods"),
        )

    def running_pods(self) -> list[str]:
        return [pod["metadata"]["name"] for pod in self.list("pod") if pod["status"].get("phase") == "Running"]

    def condition(self, kind: str, name: str, type_: str = "Succeeded") -> dict[str, Any]:
        conditions = self.get(kind, name).get("status", {}).get("conditions", [])
        return next((c for c in conditions if c["type"] == type_), {})

    def wait(self, kind: str, name: str, reason: str, type_: str = "Succeeded", seconds: float = WAIT_SECONDS) -> Any:
        """Until the condition has the reason. Returns the resource."""
        return eventually(
            lambda: self.get(kind, name) if self.condition(kind, name, type_).get("reason") == reason else None,
            lambda: f"{kind} {name}: wanted {reason}, found {self.condition(kind, name, type_)}",
            seconds,
        )


def prepare(cluster: Cluster) -> None:
    """What the operator's tests need of a cluster that is up: the CRDs, and the scripted trainer's image."""
    os.environ["KUBECONFIG"] = str(cluster.kubeconfig)
    with TemporaryDirectory() as facts:
        found = architecture.facts(QWEN2_7B).facts
        assert found
        (Path(facts) / "qwen2-7b.json").write_text(found.model_dump_json(by_alias=True))
        cluster.load_image(
            IMAGE,
            copies=[
                (HERE / "scripted", "/scripted"),
                (Path(facts), "/facts"),
                (ROOT / "operator/src/tunesmith", "/app/tunesmith"),
            ],
            environment={
                "PATH": f"/scripted:{sys.base_prefix}/bin:/usr/bin:/bin",
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONPATH": "/app",
                "REAL_PYTHON": sys.executable,  # of an environment that containers see
            },
        )
    command = [cluster.binary("kubectl"), "apply", "--server-side", "--force-conflicts", "-f", ROOT / "crds"]
    subprocess.run(command, check=True, capture_output=True)


def claim(name: str, *modes: str) -> dict[str, Any]:
    """A volume, by default for any number of pods."""
    spec = {"accessModes": modes or ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}


@contextmanager
def own_namespace(cluster: Cluster, prefix: str) -> Iterator[Kubectl]:
    """A namespace of the test's own, under the restricted Pod Security Standard, with a store."""
    namespace = f"{prefix}-{uuid4().hex[:8]}"
    kubectl = Kubectl(cluster.binary("kubectl"), namespace)
    kubectl("create", "namespace", namespace)
    kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    kubectl.apply(claim("tunesmith-store"))
    yield kubectl
    kubectl("delete", "namespace", namespace, "--wait=false")


def eventually(probe: Callable[[], Any], say: Callable[[], str], seconds: float = WAIT_SECONDS) -> Any:
    end = time.monotonic() + seconds
    while True:
        if found := probe():
            return found
        if time.monotonic() > end:
            raise AssertionError(say())
        time.sleep(0.3)


def step_reached(kubectl: Kubectl, name: str, step: int) -> None:
    """Until the job's status says that it made the step."""
    eventually(
        lambda: kubectl.get("ftj", name).get("status", {}).get("progress", {}).get("step", 0) >= step,
        lambda: kubectl("describe", "ftj", name),
    )


@contextmanager
def clean_operator(
    cluster: Cluster, namespace: str, log: Path, settings: Settings = SETTINGS
) -> Iterator[subprocess.Popen[bytes]]:
    """A running operator, whose log is shown when a test fails and must hold no traceback."""
    with operator(cluster, namespace, log, settings=settings) as process:
        yield process
    print(log.read_text())
    assert "Traceback" not in log.read_text()


def evidence(cluster: Cluster, kubectl: Kubectl, name: str) -> list[dict[str, Any]]:
    """What the scripted trainer's pods wrote of every step, in the order of writing."""
    [path] = cluster.paths.volumes.glob(f"*/jobs/{kubectl.namespace}/{name}-*/evidence.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


@contextmanager
def operator(
    cluster: Cluster, namespace: str, log: Path, kubeconfig: Path | None = None, settings: Settings = SETTINGS
) -> Iterator[subprocess.Popen[bytes]]:
    """The operator's own process, which watches one namespace. However the test left it, it is gone afterwards."""
    values = settings.model_dump() | {"watch_namespaces": namespace, "namespace": namespace, "pod_name": uuid4().hex}
    values |= {"health_port": 0, "metrics_port": 0}
    environment = {f"TUNESMITH_{name.upper()}": str(value) for name, value in values.items()}
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tunesmith"],
            env={**os.environ, **environment, "KUBECONFIG": str(kubeconfig or cluster.kubeconfig)},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def reconciler(client: Client, http: aiohttp.ClientSession) -> Reconciler:
    observer = Observer(client, http, SETTINGS)
    return Reconciler(observer, Applier(client, http, observer.admin_tokens), SETTINGS)


def chart_images(cluster: Cluster, engine: str = IMAGE) -> dict[str, str]:
    """The chart's values that choose the checkout's operator, the scripted trainer, and an engine."""
    chosen = {key: value for key, value in workloads.load(cluster).helm_values().items() if key.startswith("operator")}
    for name, image in (("trainer", IMAGE), ("engine", engine)):
        chosen[f"{name}Image.repository"], chosen[f"{name}Image.tag"] = workloads.split_tag(image)
    return chosen


def train(name: str, behaviour: str = "succeed", **spec: Any) -> dict[str, Any]:
    base = {
        "model": {"uri": f"file:///behave/{behaviour}"},
        "datasets": [{"uri": "file:///data.jsonl"}],
        "method": {"type": "SFT"},
    }
    return custom("FineTuneJob", name, {**base, **spec})


def merge(name: str, adapter: str, behaviour: str = "succeed") -> dict[str, Any]:
    spec = {"model": {"uri": f"file:///behave/{behaviour}"}, "adapters": [{"fineTuneJobRef": {"name": adapter}}]}
    return custom("MergeJob", name, spec)


def infer(name: str, adapter: str, behaviour: str = "succeed") -> dict[str, Any]:
    spec = {
        "model": {"uri": f"file:///behave/{behaviour}"},
        "adapter": {"fineTuneJobRef": {"name": adapter}},
        "datasets": [{"uri": "file:///data.jsonl"}],
    }
    return custom("InferenceJob", name, spec)


def serve(name: str, **spec: Any) -> dict[str, Any]:
    return custom("ModelDeployment", name, {"model": {"uri": "file:///model"}, **spec})


def custom(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "tunesmith.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def read_by_go(module: build.Module, body: dict[str, Any]) -> dict[str, Any]:
    """What the Go types of one of cluster/go's readers, which know no other field, read. Raises CalledProcessError."""
    paths = Paths.from_environment()
    build.ensure(paths, [module], Reporter())
    [name] = module.commands
    command = [build.binary(paths.cache, name)]
    done = subprocess.run(command, input=json.dumps(body), capture_output=True, text=True, check=True)
    read: dict[str, Any] = json.loads(done.stdout)
    return read
