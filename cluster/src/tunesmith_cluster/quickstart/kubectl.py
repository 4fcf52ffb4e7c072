"""kubectl, on one cluster."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunesmith_cluster.errors import ClusterError

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kubectl:
    """Runs kubectl; what it refuses is raised as a ClusterError."""

    binary: Path
    kubeconfig: Path

    def __call__(self, *arguments: str, stdin: str | None = None) -> str:
        done = self._run(arguments, stdin)
        if done.returncode:
            raise ClusterError(f"`kubectl {' '.join(arguments)}` failed: {done.stderr.strip()}")
        return done.stdout

    def objects(self, namespace: str, *kinds: str) -> list[Object]:
        """All objects of the given kinds in a namespace."""
        text = self("get", ",".join(kinds), f"--namespace={namespace}", "--output=json")
        items: list[Object] = json.loads(text)["items"]
        return items

    def object(self, namespace: str, kind: str, name: str) -> Object:
        """One object."""
        found: Object = json.loads(self("get", kind, name, f"--namespace={namespace}", "--output=json"))
        return found

    @contextmanager
    def forwarded(self, namespace: str, service: str, port: int) -> Iterator[str]:
        """The address on this machine of a port of a Service, while the block runs."""
        command = [
            *self._command(),
            f"--namespace={namespace}",
            "port-forward",
            f"service/{service}",
            f":{port}",
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            # "Forwarding from 127.0.0.1:38231 -> 8000"
            words = process.stdout.readline().split()
            if len(words) < 3:
                _, reason = process.communicate(timeout=10)
                raise ClusterError(f"`kubectl port-forward service/{service}` failed: {reason.strip()}")
            yield words[2]
        finally:
            process.terminate()
            process.wait(10)

    def _command(self) -> list[str]:
        return [str(self.binary), f"--kubeconfig={self.kubeconfig}"]

    def _run(self, arguments: Sequence[str], stdin: str | None) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self._command(), *arguments], input=stdin, capture_output=True, text=True, check=False)
