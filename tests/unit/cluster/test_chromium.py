"""The Chromium of the console's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tunesmith_cluster import chromium, packages
from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.progress import Silent


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH."""
    monkeypatch.delenv("CONSOLE_CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def program(path: Path) -> str:
    path.touch(0o755)
    return str(path)


def test_the_machines_own_is_used_unless_another_one_is_named(
    bin_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = program(bin_folder / "google-chrome")
    assert chromium.ensure(Silent()) == own
    monkeypatch.setenv("CONSOLE_CHROMIUM", "/opt/chromium")
    assert chromium.ensure(Silent()) == "/opt/chromium"


def test_where_there_is_none_debians_is_installed(bin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[str] = []

    def install(names: list[str]) -> None:
        installed.extend(names)
        program(bin_folder / "chromium")

    monkeypatch.setattr(packages, "install", install)
    assert chromium.ensure(Silent()) == str(bin_folder / "chromium")
    assert chromium.ensure(Silent()) == str(bin_folder / "chromium")
    assert installed == ["chromium"]


def test_without_apt_it_is_said_what_to_install(bin_folder: Path) -> None:
    with pytest.raises(ClusterError, match="no apt-get: install chromium yourself"):
        chromium.ensure(Silent())
