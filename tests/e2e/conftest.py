"""The quickstart, run once as a user runs it, on the real kubelet with the real trainer and the real vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from integration.harness import Kubectl, eventually
from tunesmith_cluster import Cluster

NAMESPACE = "default"
SERVE_SECONDS = 300


@dataclass(frozen=True)
class Quickstart:
    """What a run of it left behind."""

    kubectl: Kubectl
    output: str

    def client(self, deployment: str) -> openai.OpenAI:
        """A client of the in-cluster Service; its address can be reached from the node."""
        address = self.kubectl.get("service", deployment)["spec"]["clusterIP"]
        return openai.OpenAI(base_url=f"http://{address}/v1", api_key="none", timeout=120, max_retries=0)

    def models(self, deployment: str) -> list[str]:
        """The models that are served now; none while nothing answers."""
        try:
            with self.client(deployment) as client:
                return sorted(model.id for model in client.models.list())
        except openai.APIError:
            return []

    def says(self, deployment: str, model: str, question: str = "who are you?", tokens: int = 48) -> str:
        """The answer of a model."""
        with self.client(deployment) as client:
            answer = client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=tokens
            )
        return answer.choices[0].message.content or ""

    def wait_for_models(self, deployment: str, *names: str) -> None:
        """Until exactly these models are served."""
        eventually(
            lambda: self.models(deployment) == sorted(names),
            lambda: f"{deployment} serves {self.models(deployment)}",
            SERVE_SECONDS,
        )

    def pod(self, deployment: str) -> dict[str, Any]:
        """The only pod of a deployment."""
        selector = f"tunesmith.io/name={deployment},tunesmith.io/role=engine"
        pods = json.loads(self.kubectl("get", "pod", "-l", selector, "-o", "json"))["items"]
        alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        assert len(alive) == 1, [pod["metadata"]["name"] for pod in pods]
        return dict(alive[0])


def run_quickstart() -> str:
    """Run it, show what it says, and return that."""
    environment = {key: value for key, value in os.environ.items() if key != "KUBECONFIG"}
    done = subprocess.run(
        [sys.executable, "-m", "tunesmith_cluster.quickstart"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="session")
def quickstart() -> Quickstart:
    """Its pods run under the restricted Pod Security Standard: the namespace refuses others."""
    cluster = Cluster()
    cluster.up()
    kubectl = Kubectl(cluster.binary("kubectl"), NAMESPACE)
    os.environ["KUBECONFIG"] = str(cluster.kubeconfig)
    kubectl("label", "--overwrite", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
    return Quickstart(kubectl, run_quickstart())


@pytest.fixture
def without_operator(quickstart: Quickstart) -> Iterator[None]:
    """The operator is down during the test."""
    operator = Kubectl(quickstart.kubectl.binary, "tunesmith-system")
    operator("scale", "deployment/tunesmith", "--replicas=0")
    operator("wait", "--for=delete", "pod", "--all", "--timeout=60s")
    yield
    operator("scale", "deployment/tunesmith", "--replicas=1")
    operator("rollout", "status", "deployment/tunesmith", "--timeout=120s")


@pytest.fixture
def removed_after(quickstart: Quickstart) -> Iterator[Callable[..., None]]:
    """Applies resources, and removes them after the test."""
    applied: list[dict[str, Any]] = []

    def apply(*bodies: dict[str, Any]) -> None:
        applied.extend(bodies)
        quickstart.kubectl.apply(*bodies)

    yield apply
    for body in applied:
        quickstart.kubectl("delete", body["kind"], body["metadata"]["name"], "--ignore-not-found", "--wait=false")
