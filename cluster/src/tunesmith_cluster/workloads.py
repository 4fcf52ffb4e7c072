"""tunesmith's three images on the local cluster: an environment of the cache, and the checkout's source in /app.

A tag is the image's own digest, so that new source is a new name: Helm sees a change, and pods are replaced.

`python -m tunesmith_cluster.workloads` loads them and prints the arguments that tell Helm their names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunesmith_cluster import environments, messages
from tunesmith_cluster.cluster import Cluster
from tunesmith_cluster.environments import OPERATOR, ROOT, TRAINER
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.progress import Reporter, Silent

APP = "/app"
OPERATOR_SOURCE = "operator/src/tunesmith"
NONROOT = "65532:65532"
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Images:
    """The names of the three images."""

    operator: str
    trainer: str
    engine: str

    def helm_values(self) -> dict[str, str]:
        """The chart's values that choose these images, as for `helm --set-string`."""
        values: dict[str, str] = {}
        for key in ("operator", "trainer", "engine"):
            name, _, digest = getattr(self, key).partition("@")
            repository, tag = split_tag(name)
            values[f"{key}Image.repository"] = repository
            values[f"{key}Image.tag"] = tag
            if digest:
                values[f"{key}Image.digest"] = digest
        return values

    def variables(self) -> dict[str, str]:
        """The operator's environment variables that choose these images, for running it outside a pod."""
        return {f"TUNESMITH_{key.upper()}_IMAGE": getattr(self, key) for key in ("operator", "trainer", "engine")}


def split_tag(name: str) -> tuple[str, str]:
    """registry:5000/app:1 -> (registry:5000/app, 1); the tag is "latest" where there is none."""
    repository, colon, tag = name.rpartition(":")
    # A colon before the last slash is a port's.
    return (repository, tag) if colon and "/" not in tag else (name, "latest")


def load(cluster: Cluster, root: Path = ROOT, reporter: Reporter | None = None) -> Images:
    """Make the images of the checkout known to the node. Takes a second where nothing changed."""
    reporter = reporter or Silent()
    operator = environments.ensure(cluster.paths, OPERATOR, reporter)
    trainer = environments.ensure(cluster.paths, TRAINER, reporter)
    own = _own(root / OPERATOR_SOURCE)
    trainers = (root / "trainer-image/src/tunesmith_trainer", f"{APP}/tunesmith_trainer")
    with reporter.step("load the images of operator, trainer and engine"):
        return Images(
            operator=load_operator(cluster, root / OPERATOR_SOURCE, operator),
            trainer=_load(cluster, "tunesmith-trainer", [own, trainers], trainer),
            # None of our source: the guard comes by a volume, as it does with any vLLM image.
            engine=_load(cluster, "tunesmith-engine", [], trainer),
        )


def load_operator(cluster: Cluster, source: Path, environment: Path) -> str:
    """The operator's image of a folder that holds the package `tunesmith`, whichever version; returns its name."""
    return _load(cluster, "tunesmith-operator", [_own(source)], environment)


def load_console(cluster: Cluster, pages: Path, root: Path = ROOT, reporter: Reporter | None = None) -> str:
    """The operator's image with the web console's built pages in it, as operator/Dockerfile makes it. Its name. Apart
    from the others, so that whoever needs no console needs no Node.js.
    """
    operator = environments.ensure(cluster.paths, OPERATOR, reporter or Silent())
    copies = [_own(root / OPERATOR_SOURCE), (pages, f"{APP}/tunesmith/console/pages")]
    return _load(cluster, "tunesmith-console", copies, operator)


def _own(source: Path) -> tuple[Path, str]:
    return source, f"{APP}/tunesmith"


def image_environment(environment: Path, with_source: bool) -> Mapping[str, str]:
    """The variables that the image sets."""
    variables = {
        "PATH": f"{environment / 'bin'}:{_SYSTEM_PATH}",
        "HOME": "/tmp",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return {**variables, "PYTHONPATH": APP} if with_source else variables


def _load(cluster: Cluster, name: str, copies: Sequence[tuple[Path, str]], environment: Path) -> str:
    for source, _ in copies:
        if not source.is_dir():
            raise ClusterError(f"{source} is missing: run this from a whole checkout")

    def load(tag: str) -> str:
        return cluster.load_image(
            f"{name}:{tag}",
            copies,
            environment=image_environment(environment, bool(copies)),
            working_directory="/tmp",
            user=NONROOT,
        )

    # Under a name for people first: what it is called does not change its digest.
    digest = load("dev")
    tag = digest.partition(":")[2][:12]
    load(tag)
    return f"{name}:{tag}"


def main() -> None:
    """Load, and print --set-string arguments."""
    with messages.shown():
        images = load(Cluster(reporter=Reporter()), reporter=Reporter())
    print(" ".join(f"--set-string {key}={value}" for key, value in images.helm_values().items()))


if __name__ == "__main__":
    main()
