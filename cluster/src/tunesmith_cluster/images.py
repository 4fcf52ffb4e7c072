"""Images without a registry: an image holds its own files, and sees this machine's programs and libraries.

See `node.base_runtime_spec` for the other half: the mounts that every container gets.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from tunesmith_cluster import build, disk, node, nodes, oci, partials
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.nodes import Node
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.probes import is_listened_to

HOST_IMAGE = "localhost/host:1"
"""An image with nothing but the base: a shell and this machine's programs."""

NONROOT = "65532:65532"

_LABEL = "io.cri-containerd.image=managed"
_FOLDERS = ("dev", "etc/alternatives", "etc/ssl", "proc", "root", "run", "sys", "var")
_WRITABLE = ("tmp", "var/tmp")
_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnonroot:x:65532:65532:nonroot:/tmp:/bin/sh\n",
    "etc/group": "root:x:0:\nnonroot:x:65532:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "etc/ld.so.cache": "",
}


def skeleton() -> list[oci.Entry]:
    """What every image begins with: places to mount things on, and who the users are."""
    return [
        *(oci.Entry(folder, 0o755) for folder in _FOLDERS),
        *(oci.Entry(path.lstrip("/"), 0o755) for path in node.HOST_USERLAND if not path.startswith("/etc/")),
        *(oci.Entry(folder, 0o1777) for folder in _WRITABLE),
        *(oci.Entry(path, 0o644, text.encode()) for path, text in _FILES.items()),
    ]


def load(
    paths: Paths,
    name: str,
    copies: Sequence[tuple[Path, str]] = (),
    *,
    entrypoint: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    working_directory: str = "",
    user: str = "",
) -> str:
    """Make an image out of the given (source, destination) pairs known to all nodes that run; returns its digest.

    Does nothing where a node already knows the same content under this name.
    """
    name = oci.full_name(name)
    entries = skeleton()
    for source, destination in copies:
        entries += oci.copied(source, _destination(paths, destination))
    config = oci.Config(tuple(entrypoint), environment or {}, working_directory, user)
    with partials.folder(paths.images / "load") as temporary:
        image = oci.make_image(name, entries, config, temporary / "layer.tar")
        lacking = [each for each in _running(paths) if not _is_known(each, image.name, image.digest)]
        if lacking:
            archive = temporary / "image.tar"
            image.write_archive(archive)
            for target in lacking:
                _import(target, archive, {image.name: image.digest})
    return image.digest


def load_base(paths: Paths) -> None:
    """The two images the cluster itself needs."""
    load(paths, node.PAUSE_IMAGE, [(build.binary(paths.cache, "pause"), "/pause")], entrypoint=["/pause"])
    load(paths, HOST_IMAGE)


def _destination(paths: Paths, text: str) -> PurePosixPath:
    destination = PurePosixPath(text)
    if not destination.is_absolute() or ".." in destination.parts or destination == PurePosixPath("/"):
        raise ClusterError(f"the destination {text!r} must be an absolute path below /, such as /app")
    for shown in node.shown_in_containers(paths.envs):
        if destination.is_relative_to(shown):
            raise ClusterError(f"{text} would be hidden by this machine's {shown}; copy to another place, such as /app")
    return destination


def copy_missing(target: Node) -> None:
    """Make known to a node what the others know: it may be new, or was down when images were loaded."""
    for source in _running(target.paths):
        missing = dict(sorted(_known(source).items() - _known(target).items()))
        if missing:
            with partials.folder(target.paths.images / "copy") as temporary:
                archive = temporary / "images.tar"
                _ctr(source, "images", "export", str(archive), *missing)
                _import(target, archive, missing)


def _running(paths: Paths) -> list[Node]:
    running = [each for each in nodes.existing(paths) if is_listened_to(each.containerd_socket)]
    if not running:
        raise ClusterError("no containerd runs; start the cluster with `python -m tunesmith_cluster up`")
    return running


def _known(node: Node) -> dict[str, str]:
    """The names of the images that the node offers to pods, and their digests."""
    # The label is set by containerd's Kubernetes side: only then does a pod find the image.
    lines = [line.split() for line in _ctr(node, "images", "list").splitlines() if _LABEL in line]
    # Under its digest alone that side knows each image once more.
    return {fields[0]: fields[2] for fields in lines if not fields[0].startswith("sha256:")}


def _is_known(node: Node, name: str, digest: str) -> bool:
    return _known(node).get(name) == digest


def _import(node: Node, archive: Path, images: Mapping[str, str]) -> None:
    _ctr(node, "images", "import", str(archive))
    deadline = time.monotonic() + 30
    while lacking := [name for name, digest in images.items() if not _is_known(node, name, digest)]:
        if time.monotonic() > deadline:
            raise ClusterError(
                f"containerd of {node.name} imported {', '.join(lacking)} but does not offer it to pods; see its log"
            )
        time.sleep(0.1)


def _ctr(node: Node, *arguments: str) -> str:
    command = ["ctr", "--address", str(node.containerd_socket), "--namespace", "k8s.io", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = f"{disk.full([node.state])}\n" if disk.is_blamed(done.stderr) else ""
        raise ClusterError(f"`ctr {' '.join(arguments)}` failed: {why}{done.stderr.strip()}")
    return done.stdout
