"""The command line: `python -m tunesmith_cluster.quickstart`, and `… down` to remove what it made."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
import yaml
from rich.console import Console

from tunesmith_cluster import messages
from tunesmith_cluster.environments import ROOT
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.progress import Reporter
from tunesmith_cluster.quickstart import ask
from tunesmith_cluster.quickstart.kubectl import Kubectl
from tunesmith_cluster.quickstart.resources import KINDS
from tunesmith_cluster.quickstart.stages import Stages
from tunesmith_cluster.quickstart.target import Given, Target, choose
from tunesmith_cluster.quickstart.watch import Names, Watcher
from tunesmith_cluster.release import Release

EXAMPLES = ROOT / "examples" / "quickstart"
EXAMPLES_IMAGE = "tunesmith-trainer:dev"
"""The trainer image that the examples name."""

app = typer.Typer(
    help="From nothing to an answer of a tuned model.", add_completion=False, pretty_exceptions_enable=False
)
Folder = Annotated[Path, typer.Option(help="The folder of resources to apply.")]


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    examples: Folder = EXAMPLES,
    timeout: Annotated[float, typer.Option(help="Minutes that training and serving may take.")] = 60,
) -> None:
    """Start a cluster, install the operator, apply the examples, and ask the models who they are."""
    if context.invoked_subcommand is None:
        Quickstart(examples).run(timeout * 60)


@app.command()
def down(examples: Folder = EXAMPLES) -> None:
    """Remove the cluster; of a cluster that was there before, only what the quickstart made."""
    Quickstart(examples).down()


class Quickstart:
    """One run."""

    def __init__(self, examples: Path) -> None:
        terminal = Console(highlight=False)
        # A log is wide enough for the tables.
        self._console = terminal if terminal.is_terminal else Console(highlight=False, width=120)
        self._reporter = Reporter(self._console)
        self._examples = examples
        self._resources = read(examples)
        self._stages = Stages(self._reporter)

    def run(self, seconds: float) -> None:
        """All stages; what is there already is not done again."""
        target = choose(self._reporter)
        self._console.print(f"Using {target.title}.", markup=False)
        with self._stages.stage("cluster", silent=True):
            target.start()
        with self._stages.stage("images", silent=True):
            values = target.load_images()
        kubectl, release = self._clients(target)
        with self._stages.stage("operator, by Helm"):
            release.install(values)
        namespace = self._namespace(kubectl)
        with self._stages.stage(f"kubectl apply -f {_shown(self._examples)}"):
            self._apply(kubectl, namespace, target.trainer_image)
        watcher = Watcher(kubectl, namespace, names(self._resources), self._console, time.monotonic)
        with self._stages.stage("training, merging and serving, together", silent=True):
            watcher.wait(seconds)
        for name, took in watcher.took.items():
            self._stages.add(f"  {name}", took)
        with self._stages.stage("questions", silent=True):
            self._ask(kubectl, namespace, target)
        self._console.print()
        self._console.print(self._stages.table())
        self._say_how_to_go_on(kubectl, namespace, target)

    def down(self) -> None:
        """Undo `run`."""
        target = choose(self._reporter)
        if not target.remove():
            kubectl, release = self._clients(target)
            namespace = self._namespace(kubectl)
            with self._reporter.step("delete the examples' resources"):
                self._delete(kubectl, namespace)
            with self._reporter.step("uninstall the operator"):
                release.uninstall()
            self._reporter.say("The CRDs stay: with them, all resources of their kinds would be deleted.")
        if not isinstance(target, Given) and target.cluster.paths.state.exists():
            target.cluster.down()  # tests make a local cluster, also where the quickstart uses kind

    def _clients(self, target: Target) -> tuple[Kubectl, Release]:
        kubectl = Kubectl(target.tool("kubectl"), target.kubeconfig)
        return kubectl, Release(target.tool("helm"), target.kubeconfig)

    def _namespace(self, kubectl: Kubectl) -> str:
        named = {item["metadata"].get("namespace") for item in self._resources} - {None}
        if len(named) > 1:
            raise ClusterError(f"{self._examples} names several namespaces: {', '.join(sorted(named))}")
        current = "{.contexts[0].context.namespace}"
        return (
            named.pop() if named else kubectl("config", "view", "--minify", f"--output=jsonpath={current}") or "default"
        )

    def _apply(self, kubectl: Kubectl, namespace: str, trainer_image: str | None) -> None:
        what, text = f"--filename={self._examples}", None
        if trainer_image is not None:
            what = "--filename=-"
            text = "\n---\n".join(path.read_text(encoding="utf-8") for path in files(self._examples))
            text = text.replace(f"image: {EXAMPLES_IMAGE}", f"image: {trainer_image}")
        try:
            kubectl("apply", what, f"--namespace={namespace}", stdin=text)
        except ClusterError as error:
            changed = refused_changes(str(error))
            if not changed:
                raise
            delete = f"{kubectl.binary} --kubeconfig {kubectl.kubeconfig} --namespace {namespace} delete"
            raise ClusterError(
                f"{', '.join(changed)}: a job's spec cannot be changed, and {_shown(self._examples)} is no longer "
                "what was applied here. To train anew, delete the old ones, then run `make quickstart` again:\n"
                f"  {delete} {' '.join(changed)}"
            ) from error

    def _delete(self, kubectl: Kubectl, namespace: str) -> None:
        try:
            kubectl("delete", f"--filename={self._examples}", f"--namespace={namespace}", "--ignore-not-found")
        except ClusterError as error:
            if not only_lacks_kinds(str(error)):
                raise

    def _ask(self, kubectl: Kubectl, namespace: str, target: Target) -> None:
        everything = ask.expectations(self._resources)
        all_names = {name for served in everything for name in served.identities.values() if name}
        for served in everything:
            url = kubectl.object(namespace, "modeldeployment", served.deployment)["status"]["url"]
            with reachable(kubectl, url, direct=target.services_reachable) as address:
                ask.interview(address, served, all_names, self._console)

    def _say_how_to_go_on(self, kubectl: Kubectl, namespace: str, target: Target) -> None:
        deployment = next(name for kind, name in names(self._resources) if kind == "ModelDeployment")
        model = next(
            served for served in ask.expectations(self._resources) if served.deployment == deployment
        ).identities
        self._console.print(
            f"""
The cluster stays up. To look around:
  export KUBECONFIG={target.kubeconfig} PATH={kubectl.binary.parent}:$PATH
  kubectl --namespace {namespace} get ftj,mj,mdep
  kubectl --namespace {namespace} port-forward service/{deployment} 8000:80 &
  {ask.curl("http://127.0.0.1:8000/v1", list(model)[-1])}
Run `make quickstart` again at any time: what is done is not done again. To remove all of it: make down""",
            markup=False,
            soft_wrap=True,
        )


@contextmanager
def reachable(kubectl: Kubectl, url: str, *, direct: bool) -> Iterator[str]:
    """The address, from this machine, of http://NAME.NAMESPACE.svc:PORT/PATH, while the block runs."""
    parts = urlsplit(url)
    service, namespace = (parts.hostname or "").split(".")[:2]
    port = parts.port or 80
    if direct:
        # The node's Services are this machine's, its cluster DNS is not.
        host = kubectl.object(namespace, "service", service)["spec"]["clusterIP"]
        yield f"http://{host if port == 80 else f'{host}:{port}'}{parts.path}"
    else:
        with kubectl.forwarded(namespace, service, port) as host_and_port:
            yield f"http://{host_and_port}{parts.path}"


def refused_changes(message: str) -> list[str]:
    """The jobs, as kind/name, whose new spec the API server refused since there is an old one."""
    found = re.findall(
        r'(\w+)\.\S+ "([^"]+)" is invalid: spec: .*cannot be changed|(?:The )?Job "([^"]+)" is invalid: .*immutable',
        message,
    )
    return [f"{kind.lower() or 'job'}/{name or job}" for kind, name, job in found]


def only_lacks_kinds(message: str) -> bool:
    """Whether all that kubectl says is that the cluster has no such kinds: it has done the rest, and none of them is
    there.
    """
    return all(
        "no matches for kind" in line or line == "ensure CRDs are installed first" for line in message.splitlines()
    )


def files(folder: Path) -> list[Path]:
    """The files that `kubectl apply -f FOLDER` reads, in its order."""
    return sorted(path for path in folder.iterdir() if path.suffix in {".yaml", ".yml", ".json"})


def read(folder: Path) -> list[dict[str, Any]]:
    """All resources of a folder."""
    found = [item for path in files(folder) for item in yaml.safe_load_all(path.read_text(encoding="utf-8")) if item]
    if not any(item["kind"] in KINDS for item in found):
        raise ClusterError(f"{folder} holds no resource of tunesmith's kinds")
    return found


def names(resources: list[dict[str, Any]]) -> Names:
    """(kind, name) of the resources to wait for."""
    return [(item["kind"], item["metadata"]["name"]) for item in resources if item["kind"] in {"Job", *KINDS}]


def _shown(path: Path) -> str:
    return f"{path.relative_to(ROOT)}/" if path.is_relative_to(ROOT) else str(path)


def main() -> None:
    """Run the command line."""
    try:
        with messages.shown():
            app()
    except KeyboardInterrupt:
        sys.exit("\nStopped. What was started runs on; `make quickstart` goes on from there, `make down` removes it.")
