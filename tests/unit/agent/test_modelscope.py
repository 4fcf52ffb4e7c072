"""ms://: fetching from a server that speaks ModelScope's API, which its own client (modelscope-hub) understands too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tunesmith.fetching import NOT_FOUND, PERMANENT, TRANSIENT, FetchError, fetch
from tunesmith.fetching import modelscope as api
from tunesmith.inspecting.files import open_files
from unit.agent.servers import Handler, Server
from unit.agent.standins import ModelScope

WEIGHTS = bytes(range(256)) * 4_000
Repositories = dict[str, dict[str, bytes]]


@pytest.fixture
def repositories(modelscope: ModelScope) -> Repositories:
    """kind/name -> files, at the revisions master and v1."""
    modelscope.repositories |= {
        "models/org/base": {"config.json": b"{}", "sub/model.safetensors": WEIGHTS, "old.bin": b"x"},
        "datasets/org/rows": {f"data/{number:03}.jsonl": str(number).encode() for number in range(230)},
        "models/org/private": {"config.json": b"{}"},
    }
    modelscope.private.add("models/org/private")
    return modelscope.repositories


def tree(folder: Path) -> dict[str, bytes]:
    """Files by name."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_model_comes_without_pickles(repositories: Repositories, tmp_path: Path) -> None:
    assert tree(fetch("ms://org/base@v1", tmp_path / "to")) == {"config.json": b"{}", "sub/model.safetensors": WEIGHTS}


@pytest.mark.parametrize("kind", ["auto", "dataset"])
def test_a_dataset_comes_whole_whatever_its_number_of_pages(
    repositories: Repositories, tmp_path: Path, kind: str
) -> None:
    assert tree(fetch("ms://org/rows", tmp_path / "to", kind=kind)) == repositories["datasets/org/rows"]  # type: ignore[arg-type]


def test_modelscopes_own_client_gets_the_same(repositories: Repositories, tmp_path: Path) -> None:
    """So the stand-in answers as the client knows the service."""
    script = (
        "import sys; from modelscope_hub import HubApi; api = HubApi(token='')\n"
        "api.download_repo(sys.argv[1], repo_type=sys.argv[2], local_dir=sys.argv[3])"
    )
    for kind, name in (("model", "org/base"), ("dataset", "org/rows")):
        theirs = tmp_path / kind
        environment = os.environ | {"HOME": str(tmp_path), "MODELSCOPE_CACHE": str(tmp_path / "cache")}
        command = [sys.executable, "-c", script, name, kind, str(theirs)]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
        own = tree(fetch(f"ms://{name}", tmp_path / f"own-{kind}", kind=kind))  # type: ignore[arg-type]
        found = {path: data for path, data in tree(theirs).items() if not path.endswith(".bin")}
        assert found == own


def test_the_token_comes_from_the_secret(repositories: Repositories, server: Server, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"ms://org/private: .*see secretRef"):
        fetch("ms://org/private", tmp_path / "to", kind="model")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "token").write_text("ms_ours\n")
    assert tree(fetch("ms://org/private", tmp_path / "to", tmp_path / "secret")) == {"config.json": b"{}"}
    assert server.seen[-1][1]["cookie"] == "m_session_id=ms_ours"


def test_a_fetch_that_broke_off_goes_on_where_it_was(
    repositories: Repositories, server: Server, tmp_path: Path
) -> None:
    whole, cuts = server.answer, [len(WEIGHTS) // 2]

    def cut(handler: Handler) -> None:
        if "safetensors" in handler.path and cuts:
            handler.file(WEIGHTS, cut=cuts.pop())
        else:
            whole(handler)

    server.answer = cut
    assert tree(fetch("ms://org/base", tmp_path / "to"))["sub/model.safetensors"] == WEIGHTS
    assert [h["range"] for path, h in server.seen if "range" in h] == [f"bytes={len(WEIGHTS) // 2}-"]


def test_what_is_not_what_the_repository_says_is_refused(
    repositories: Repositories, server: Server, tmp_path: Path
) -> None:
    whole = server.answer
    server.answer = lambda h: h.file(b"[]") if "FilePath=config" in h.path else whole(h)
    with pytest.raises(FetchError, match=r"config.json is not what the repository says") as error:
        fetch("ms://org/base", tmp_path / "to")
    assert error.value.code == TRANSIENT
    repositories["models/org/base"] = {"../../stolen": b"x"}
    server.answer = whole
    with pytest.raises(FetchError, match="outside itself"):
        fetch("ms://org/base", tmp_path / "again")
    assert not list(tmp_path.rglob("stolen"))


@pytest.mark.parametrize("address", ["ms://org/none", "ms://org/base@v9"])
def test_what_is_not_there_is_named(repositories: Repositories, tmp_path: Path, address: str) -> None:
    with pytest.raises(FetchError, match=f"{address}: there is no such model or revision") as error:
        fetch(address, tmp_path / "to", kind="model")
    assert error.value.code == NOT_FOUND


def test_addresses_have_an_owner_and_a_name(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="not of the form ms://") as error:
        fetch("ms://one", tmp_path / "to")
    assert error.value.code == PERMANENT


def test_a_server_that_is_not_there_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "127.0.0.1:9")
    with pytest.raises(FetchError, match="cannot be reached from the pod") as error:
        fetch("ms://org/base", tmp_path / "to")
    assert error.value.code == TRANSIENT


def test_a_model_is_looked_at_by_parts_of_its_files(repositories: Repositories) -> None:
    files = open_files("ms://org/base", {})
    assert files
    assert "sub/model.safetensors" in files.names
    assert files.read("sub/model.safetensors", 300, 4) == WEIGHTS[300:304]
    assert api.read("ms://org/base", "config.json", 0, 100, {}) == b"{}"
