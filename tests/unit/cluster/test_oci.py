"""Images: the same content gives the same bytes, whoever builds it and when."""

import hashlib
import json
import os
import tarfile
from pathlib import Path, PurePosixPath

import pytest
from tunesmith_cluster import ClusterError, Paths, images, oci


def build(folder: Path, source: Path) -> tuple[oci.Image, bytes]:
    folder.mkdir()
    entries = [*images.skeleton(), *oci.copied(source, PurePosixPath("/app"))]
    config = oci.Config(["/usr/bin/python3", "-m", "app"], {"B": "2", "A": "1"}, "/app", images.NONROOT)
    image = oci.make_image("localhost/app:1", entries, config, folder / "layer.tar")
    image.write_archive(folder / "image.tar")
    return image, (folder / "image.tar").read_bytes()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_source(tmp_path / "source", ["package/a.py", "package/b.py"])


def make_source(root: Path, files: list[str]) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(file, encoding="utf-8")
    (root / "run").write_text("#!/bin/sh\n", encoding="utf-8")
    (root / "run").chmod(0o700)
    (root / "link").symlink_to("run")
    (root / "package/__pycache__").mkdir()
    (root / "package/__pycache__/a.pyc").write_bytes(os.urandom(8))
    return root


def test_the_archive_depends_on_content_alone(tmp_path: Path, source: Path) -> None:
    copy = make_source(tmp_path / "elsewhere", ["package/b.py", "package/a.py"])
    os.utime(copy / "run", (1, 1))
    (copy / "package").chmod(0o700)
    (copy / "package/a.py").chmod(0o600)
    first, first_bytes = build(tmp_path / "1", source)
    second, second_bytes = build(tmp_path / "2", copy)
    assert first.digest == second.digest
    assert first_bytes == second_bytes
    (copy / "package/a.py").write_text("changed", encoding="utf-8")
    assert build(tmp_path / "3", copy)[0].digest != first.digest


def test_the_layer_is_readable_for_every_user_and_belongs_to_root(tmp_path: Path, source: Path) -> None:
    build(tmp_path / "1", source)
    with tarfile.open(tmp_path / "1/layer.tar") as layer:
        members = {member.name: member for member in layer}
    assert all(member.uid == member.gid == member.mtime == 0 for member in members.values())
    assert members["app/package/a.py"].mode == 0o644
    assert members["app/run"].mode == 0o755
    assert members["app/link"].linkname == "run"
    assert members["root"].mode == members["app"].mode == members["app/package"].mode == 0o755
    assert members["tmp"].mode == 0o1777
    assert not any("__pycache__" in name for name in members)
    names = list(members)
    assert all(str(PurePosixPath(name).parent) in (".", *names[:i]) for i, name in enumerate(names))


def test_the_archive_is_in_oci_layout(tmp_path: Path, source: Path) -> None:
    image, _ = build(tmp_path / "1", source)
    with tarfile.open(tmp_path / "1/image.tar") as archive:
        blobs = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    for name, content in blobs.items():
        if name.startswith("blobs/sha256/"):
            assert hashlib.sha256(content).hexdigest() == name.removeprefix("blobs/sha256/")
    [described] = json.loads(blobs["index.json"])["manifests"]
    assert described["digest"] == image.digest
    assert described["annotations"] == {"io.containerd.image.name": "localhost/app:1"}
    manifest = json.loads(blobs[f"blobs/sha256/{image.digest.removeprefix('sha256:')}"])
    config = json.loads(blobs[f"blobs/sha256/{manifest['config']['digest'].removeprefix('sha256:')}"])
    assert config["config"]["User"] == "65532:65532"
    assert config["config"]["Env"][:2] == ["A=1", "B=2"]
    assert config["rootfs"]["diff_ids"] == [manifest["layers"][0]["digest"]]


def test_a_missing_source_is_told(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="there is no such file or folder"):
        list(oci.copied(tmp_path / "absent", PurePosixPath("/app")))


@pytest.mark.parametrize("destination", ["/usr/local/app", "/", "app", "/app/../usr", "/cache/envs/x"])
def test_a_destination_that_the_container_would_not_see_is_refused(tmp_path: Path, destination: str) -> None:
    paths = Paths(cache=Path("/cache"), state=tmp_path)
    with pytest.raises(ClusterError):
        images.load(paths, "app", [(tmp_path, destination)])


@pytest.mark.parametrize(
    ("given", "full"),
    [
        ("app", "docker.io/library/app:latest"),
        ("app:1", "docker.io/library/app:1"),
        ("team/app:1", "docker.io/team/app:1"),
        ("localhost/app:1", "localhost/app:1"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("example.org/team/app:1", "example.org/team/app:1"),
    ],
)
def test_names_are_written_as_the_kubelet_writes_them(given: str, full: str) -> None:
    assert oci.full_name(given) == full
