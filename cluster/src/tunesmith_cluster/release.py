"""The Helm release of tunesmith on a cluster: installed only where something differs, since every upgrade is a new
revision and a write.

`python -m tunesmith_cluster.release install|uninstall [HELM ARGUMENT...]` uses KUBECONFIG, and for the local cluster
the checkout's images.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith_cluster import messages, tools, workloads
from tunesmith_cluster.cluster import Cluster
from tunesmith_cluster.environments import ROOT
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.progress import Reporter

CHART = ROOT / "helm" / "tunesmith"
NAME = "tunesmith"
NAMESPACE = "tunesmith-system"
WAIT = "4m"


@dataclass(frozen=True, slots=True)
class Release:
    """The release, on the cluster of a kubeconfig."""

    helm: Path
    kubeconfig: Path
    name: str = NAME
    namespace: str = NAMESPACE

    def install(self, values: Mapping[str, str], more: Sequence[str] = (), chart: Path = CHART) -> bool:
        """Install or upgrade, and wait for the operator. Whether there was anything to do."""
        # Helm keeps this text with the release: it says whether what runs is what is wanted.
        description = f"chart and values {fingerprint(chart, values, more)}"
        status, deployed = self._status()
        if (status, deployed) == ("deployed", description):
            return False
        if status.startswith("pending"):
            helm = f"{self.helm} --kubeconfig {self.kubeconfig} --namespace {self.namespace}"
            raise ClusterError(
                f"the release {self.name} is {status}: helm is at work on it, or was killed before it was done. In that"
                f" case remove it, then run this again; CRDs and resources stay:\n  {helm} uninstall {self.name}"
            )
        arguments = ["upgrade", "--install", self.name, str(chart), "--create-namespace"]
        # The CRDs may be there already: applied by hand, or left by an earlier release.
        arguments += ["--take-ownership", *(["--force-conflicts"] if self._major() >= 4 else [])]
        arguments += [f"--description={description}", "--wait", f"--timeout={WAIT}"]
        arguments += [f"--set-string={key}={value}" for key, value in sorted(values.items())]
        self._run(*arguments, *more)
        return True

    def uninstall(self) -> None:
        """Remove the release; the CRDs and all resources of their kinds stay."""
        self._run("uninstall", self.name, "--ignore-not-found", "--wait", f"--timeout={WAIT}")

    def _major(self) -> int:
        text = self._run("version", "--short").strip().removeprefix("v")
        return int(text.partition(".")[0])

    def _status(self) -> tuple[str, str]:
        """Helm's word for how the release is, and its description; both empty where there is none."""
        done = self._start("status", self.name, "--output=json")
        info = {} if done.returncode else json.loads(done.stdout)["info"]
        return str(info.get("status", "")), str(info.get("description", ""))

    def _run(self, *arguments: str) -> str:
        done = self._start(*arguments)
        if done.returncode:
            raise ClusterError(
                f"`helm {arguments[0]}` failed: {done.stderr.strip()}\nSee what the operator says: "
                f"kubectl --kubeconfig {self.kubeconfig} --namespace {self.namespace} describe pods"
            )
        return done.stdout

    def _start(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.helm), f"--kubeconfig={self.kubeconfig}", f"--namespace={self.namespace}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)


def fingerprint(chart: Path, values: Mapping[str, str], more: Sequence[str]) -> str:
    """The same for the same chart, values and arguments."""
    digest = hashlib.sha256(json.dumps([sorted(values.items()), list(more)]).encode())
    for path in sorted(path for path in chart.rglob("*") if path.is_file()):
        digest.update(f"\0{path.relative_to(chart)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def main(arguments: Sequence[str]) -> None:
    """The two commands that the module's docstring shows."""
    reporter = Reporter()
    cluster = Cluster(reporter=reporter)
    kubeconfig = Path(os.environ.get("KUBECONFIG") or cluster.kubeconfig)
    if not kubeconfig.exists():
        if arguments == ["uninstall"]:
            return  # where there is no cluster, there is no operator on it
        raise ClusterError(f"there is no {kubeconfig}: start the local cluster with `make up`, or set KUBECONFIG")
    release = Release(tools.find("helm", cluster.paths, reporter), kubeconfig)
    is_local = kubeconfig == cluster.kubeconfig
    if is_local:
        cluster.up()  # it may have ended with the machine's last restart
    match arguments:
        case ["install", *more]:
            values = workloads.load(cluster, reporter=reporter).helm_values() if is_local else {}
            with reporter.step("install the operator"):
                release.install(values, more)
        case ["uninstall"]:
            with reporter.step("uninstall the operator"):
                release.uninstall()
        case _:
            sys.exit("usage: python -m tunesmith_cluster.release install [HELM ARGUMENT...] | uninstall")


if __name__ == "__main__":
    with messages.shown():
        main(sys.argv[1:])
