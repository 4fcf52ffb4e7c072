"""Headless Chromium drives the console: operator/console/browser has what it does there.

The console runs as the chart runs it, without credentials, and once more as `tunesmith console`. An operator works in
one namespace. In another, none does: a script in a pod stands for the engine behind a ModelDeployment whose status is
written here. Screenshots are in $CONSOLE_OUTPUT, by default the test's own folder.
"""

from __future__ import annotations

import base64
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from console.browse import browse, pictures
from integration.harness import IMAGE, Kubectl, eventually, own_namespace, serve, train
from tunesmith_cluster import Cluster, console
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.progress import Reporter

OURS = "finetunejobs.tunesmith.io,mergejobs.tunesmith.io,inferencejobs.tunesmith.io,modeldeployments.tunesmith.io"
ENGINE = Path(__file__).with_name("engine.py")


def steps(name: str, number: int, milliseconds: int = 50, **more: Any) -> dict[str, Any]:
    return train(name, f"steps-{milliseconds}", training={"maxSteps": number, "globalBatchSize": 2}, **more)


def account(kubectl: Kubectl, name: str, *others: Kubectl) -> str:
    """A token. `edit` is Kubernetes' own role, and what the chart adds to it; a reader sees tunesmith's kinds."""
    kubectl("create", "serviceaccount", name)
    for space in (kubectl, *others):
        who = f"--serviceaccount={kubectl.namespace}:{name}"
        if name == "editor":
            space("create", "rolebinding", "editor-of-pods", "--clusterrole=edit", who)
            space("create", "role", name, "--verb=*", f"--resource={OURS}")
        else:
            space("create", "role", name, "--verb=get,list", f"--resource={OURS}")
        space("create", "rolebinding", name, f"--role={name}", who)
    return kubectl("create", "token", name).strip()


def engine(name: str) -> list[dict[str, Any]]:
    """A pod and its Service, named as those that the operator makes."""
    container = {
        "name": "engine",
        "image": IMAGE,
        "command": ["/usr/bin/env", "python3", "-c", ENGINE.read_text()],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    labels = {"app": name}
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "labels": labels},
            "spec": {"containers": [container], "securityContext": security, "automountServiceAccountToken": False},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"selector": labels, "ports": [{"name": "http", "port": 80, "targetPort": 8000}]},
        },
    ]


def serving(kubectl: Kubectl) -> None:
    """A deployment that answers, with one adapter, and a job of which another could be."""
    adapter = {"name": "polite", "uri": "pvc://tunesmith-store/adapters/0123"}
    kubectl.apply(serve("chat", adapters=[adapter]), steps("source", 5), *engine("chat"))
    made = kubectl.get("modeldeployment", "chat")
    now = made["metadata"]["creationTimestamp"]
    ready = {"type": "Ready", "status": "True", "reason": "Ready", "message": "1 of 1 pods"}
    ready |= {"lastTransitionTime": now, "observedGeneration": 1}
    pod = {"name": "polite", "state": "Ready", "desiredPods": 1, "readyPods": 1, "digest": "sha256:0123456789ab"}
    status = {"conditions": [ready], "replicas": 1, "readyReplicas": 1, "adapters": [pod], "url": "http://chat"}
    kubectl("replace", "--subresource=status", "-f", "-", stdin={**made, "status": status})
    kubectl("wait", "pod/chat", "--for=condition=Ready", "--timeout=60s")


@contextmanager
def in_cluster(cluster: Cluster, pages: Path, folder: Path) -> Iterator[str]:
    """The process as the chart runs it: with the API server's address and authority, and no credentials."""
    config = yaml.safe_load(cluster.kubeconfig.read_text())["clusters"][0]["cluster"]
    authority = folder / "ca.crt"
    if "certificate-authority-data" in config:
        authority.write_bytes(base64.b64decode(config["certificate-authority-data"]))
    else:
        authority = Path(config["certificate-authority"])
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    values = {"server": config["server"], "authority": authority, "pages": pages, "port": port}
    environment = {f"TUNESMITH_CONSOLE_{name.upper()}": str(value) for name, value in values.items()}
    inherited = {key: value for key, value in os.environ.items() if key != "KUBECONFIG"}
    with process([sys.executable, "-m", "tunesmith.console"], {**inherited, **environment}, folder / "console.log"):
        eventually(lambda: answers(port), (folder / "console.log").read_text)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def on_this_machine(kubectl: Kubectl, pages: Path, log: Path) -> Iterator[str]:
    """`tunesmith console`, with the kubeconfig of KUBECONFIG. Its address."""
    command = [sys.executable, "-m", "tunesmith.cli", "console", "--no-browser", "-n", kubectl.namespace]
    with process(command, {**os.environ, "TUNESMITH_CONSOLE_PAGES": str(pages), "COLUMNS": "200"}, log):
        found = eventually(lambda: re.search(r"http://127\S+", log.read_text()), log.read_text)
        yield found[0]


@contextmanager
def process(command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as file:
        running = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield
    finally:
        running.terminate()
        running.wait(20)
    assert "Traceback" not in log.read_text()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def test_everything_the_console_does_in_chromium(
    cluster: Cluster, kubectl: Kubectl, running: object, tmp_path: Path
) -> None:
    kubectl.apply(
        steps("done", 30),
        steps("other", 20),
        train("broken", "bad-data", nodes=2),
        train("waiting", "hang"),
    )
    pages = console.pages(Paths.from_environment(), Reporter())
    output = pictures(tmp_path)
    with own_namespace(cluster, "console") as other:
        serving(other)
        tokens = {"EDITOR": account(kubectl, "editor", other), "READER": account(kubectl, "reader")}
        for name, reason in (("done", "Completed"), ("other", "Completed"), ("broken", "DataError")):
            kubectl.wait("ftj", name, reason)
        with (
            in_cluster(cluster, pages, tmp_path) as url,
            on_this_machine(kubectl, pages, tmp_path / "cli.log") as local,
        ):
            given = {"URL": url, "LOCAL": local, "TEAM": kubectl.namespace, "SERVING": other.namespace, **tokens}
            browse("console", given, output, *os.environ.get("CONSOLE_ONLY", "").split())
    assert len(list(output.glob("*.png"))) >= 12
