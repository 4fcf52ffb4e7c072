"""Images without a registry: an image holds its own files, and sees this machine's programs and libraries.

See `node.base_runtime_spec` for the other half: the mounts that every container gets.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from tunesmith_cluster import build, node, oci
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.paths import Paths

HOST_IMAGE = "localhost/host:1"
"""An image with nothing but the base: a shell and this machine's programs."""

NONROOT = "65532:65532"

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
    """Make an image out of the given (source, destination) pairs known to the node; returns its digest.

    Does nothing if the node already knows the same content under this name.
    """
    name = oci.full_name(name)
    entries = skeleton()
    for source, destination in copies:
        entries += oci.copied(source, _destination(paths, destination))
    config = oci.Config(tuple(entrypoint), environment or {}, working_directory, user)
    folder = paths.state / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        image = oci.make_image(name, entries, config, Path(temporary, "layer.tar"))
        if not _is_known(paths, image):
            archive = Path(temporary, "image.tar")
            image.write_archive(archive)
            _ctr(paths, "images", "import", str(archive))
            _wait_known(paths, image)
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


def _is_known(paths: Paths, image: oci.Image) -> bool:
    # The label is set by containerd's Kubernetes side: only then does a pod find the image.
    listed = _ctr(paths, "images", "list", f"name=={image.name}")
    return any(image.digest in line and "io.cri-containerd.image=managed" in line for line in listed.splitlines())


def _wait_known(paths: Paths, image: oci.Image) -> None:
    deadline = time.monotonic() + 30
    while not _is_known(paths, image):
        if time.monotonic() > deadline:
            raise ClusterError(f"containerd imported {image.name} but does not offer it to pods; see containerd.log")
        time.sleep(0.1)


def _ctr(paths: Paths, *arguments: str) -> str:
    command = ["ctr", "--address", str(paths.containerd_socket), "--namespace", "k8s.io", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip()
        if not paths.containerd_socket.exists():
            reason = "containerd does not run; start the cluster with `python -m tunesmith_cluster up`"
        raise ClusterError(f"`ctr {' '.join(arguments)}` failed: {reason}")
    return done.stdout
