"""Argo CD, for as long as a test needs it: its application controller, its repo-server, and Debian's Redis.

Processes of this machine, as in Argo CD's own development setup; its kinds and settings come from its own manifests.
There is no API server and no user interface: Applications are written with kubectl.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from tunesmith_cluster import addons, build, packages
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.probes import accepts, answers
from tunesmith_cluster.progress import Reporter
from tunesmith_cluster.transient import free_ports, running

NAME = "argocd"
NAMESPACE = "argocd"
KINDS = ("applications.argoproj.io", "appprojects.argoproj.io")
_REDIS = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1", "libatomic1")
_LIBRARIES = Path("usr/lib/x86_64-linux-gnu")
_LOOPBACK = "127.0.0.1"
_CONFIGURATION = ("argocd-cm", "argocd-cmd-params-cm", "argocd-gpg-keys-cm", "argocd-rbac-cm", "argocd-secret",
                  "argocd-ssh-known-hosts-cm", "argocd-tls-certs-cm")  # fmt: skip


@contextmanager
def serving(paths: Paths, folder: Path) -> Iterator[None]:
    """Argo CD as it is right after its installation, while the context lasts. Logs and clones are in `folder`.

    What Applications made goes with them at the end, and so do Argo CD's kinds.
    """
    build.ensure(paths, [build.ARGOCD], Reporter())
    redis, tools = folder / "redis.sock", folder / "bin"
    _link_tools(paths, tools)
    common = {
        "KUBECONFIG": str(paths.admin_kubeconfig),
        # https://kubernetes.default.svc is the cluster of that kubeconfig, which a process outside of it cannot know.
        "ARGOCD_FAKE_IN_CLUSTER": "true",
        "PATH": f"{tools}:/usr/local/bin:/usr/bin:/bin",
        "TMPDIR": str(folder),
        "ARGOCD_ASK_PASS_SOCK": str(folder / "ask-pass.sock"),
        "ARGOCD_GPG_ENABLED": "false",
    }
    repository, repository_metrics, metrics = free_ports(3)
    _install(paths)
    with ExitStack() as stack:
        stack.callback(_remove, paths)
        stack.enter_context(
            running("Redis", _redis(paths, redis), accepts(redis), folder / "redis.log", _redis_environment(paths))
        )

        def component(name: str, health: str, *arguments: str) -> None:
            command = [str(build.binary(paths.cache, NAME)), f"--redis={redis}", "--logformat=text", *arguments]
            log, environment = folder / f"{name}.log", {**common, "ARGOCD_BINARY_NAME": f"argocd-{name}"}
            stack.enter_context(running(f"argocd-{name}", command, answers(health), log, environment))

        component(
            "repo-server",
            f"http://{_LOOPBACK}:{repository_metrics}/healthz?full=true",
            *("--disable-tls", f"--address={_LOOPBACK}", f"--port={repository}"),
            *(f"--metrics-address={_LOOPBACK}", f"--metrics-port={repository_metrics}"),
        )
        component(
            "application-controller",
            f"http://{_LOOPBACK}:{metrics}/healthz",
            *(f"--namespace={NAMESPACE}", f"--repo-server={_LOOPBACK}:{repository}", "--repo-server-plaintext"),
            # Else a resource's health, which its users see, is in Redis only.
            *(f"--metrics-port={metrics}", "--persist-resource-health"),
        )
        # Before the controller ends, which alone can take its finalizers away.
        stack.callback(_remove_applications, paths)
        yield


def manifests(paths: Paths) -> Path:
    """The folder of Argo CD's own manifests."""
    return build.binary(paths.cache, NAME).parent / build.ARGOCD_MANIFESTS


def _install(paths: Paths) -> None:
    own = manifests(paths)
    kinds = [own / "crds" / f"{kind}-crd.yaml" for kind in ("application", "appproject")]
    settings = [own / "base" / "config" / f"{name}.yaml" for name in _CONFIGURATION]
    objects = [yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader) for path in [*kinds, *settings]]
    addons.apply(paths, [_namespace(), *(_placed(item) for item in objects)])
    addons.establish(paths, list(KINDS))
    addons.apply(paths, _of_first_start())


def _placed(item: dict[str, Any]) -> dict[str, Any]:
    if item["kind"] == "CustomResourceDefinition":
        return item
    return {**item, "metadata": {**item["metadata"], "namespace": NAMESPACE}}


def _namespace() -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}


def _of_first_start() -> list[dict[str, Any]]:
    """What Argo CD's API server makes when it starts first: a project, and a key, without which the controller takes
    no later change of the settings.
    """
    return [
        {
            "apiVersion": "argoproj.io/v1alpha1",
            "kind": "AppProject",
            "metadata": {"name": "default", "namespace": NAMESPACE},
            "spec": {
                "sourceRepos": ["*"],
                "destinations": [{"server": "*", "namespace": "*"}],
                "clusterResourceWhitelist": [{"group": "*", "kind": "*"}],
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": "argocd-secret",
                "namespace": NAMESPACE,
                "labels": {"app.kubernetes.io/part-of": "argocd"},
            },
            "stringData": {"server.secretkey": secrets.token_urlsafe(32)},
        },
    ]


def _remove_applications(paths: Paths) -> None:
    addons.kubectl(paths, "delete", KINDS[0], "--all", f"--namespace={NAMESPACE}", "--timeout=120s")


def _remove(paths: Paths) -> None:
    addons.kubectl(paths, "delete", "crd", *KINDS, "--ignore-not-found", "--wait=false")
    addons.kubectl(paths, "delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false")


def _link_tools(paths: Paths, folder: Path) -> None:
    """The repo-server runs programs by their names."""
    folder.mkdir()
    (folder / "helm").symlink_to(build.binary(paths.cache, "helm"))


def _redis(paths: Paths, socket: Path) -> list[str]:
    found = shutil.which("redis-server") or str(packages.unpacked(paths.cache, _REDIS) / "usr/bin/redis-server")
    # By a socket of its own alone, and nothing on disk.
    return [found, "--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no"]


def _redis_environment(paths: Paths) -> dict[str, str]:
    return {"LD_LIBRARY_PATH": str(paths.cache / _REDIS[0] / _LIBRARIES)}
