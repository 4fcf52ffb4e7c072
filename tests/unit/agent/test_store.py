"""Folders of the store: whole, immutable, named by content, and nothing from outside."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from tunesmith import artifacts
from tunesmith.agent.store import NAME, Cancelled, Source, Store, StoreError, fingerprint
from tunesmith.serving.contract import Version


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "adapters")


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    folder = tmp_path / "origin"
    (folder / "sub").mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "sub" / "more").write_bytes(b"x" * 3_000_000)
    (folder / "manifest.json").write_text('{"lineage": 1}')
    return folder


def of(folder: Path, **more: object) -> Source:
    desired = {"name": "a", "uri": f"file://{folder}", "path": str(folder), **more}
    return Source.of(Version.model_validate(desired))


def copy(store: Store, folder: Path, name: str = "a") -> Path:
    return store.copy(name, f"file://{folder}", folder, threading.Event())


def test_a_version_is_named_by_its_content(store, origin):
    folder = store.publish(copy(store, origin), "a", of(origin))
    assert folder == store.root / "a" / artifacts.digest(origin)
    assert (folder / "manifest.json").read_text() == '{"lineage": 1}'
    assert store.folders() == [folder]
    assert store.owns(str(folder))
    assert not store.owns(str(origin))
    assert list(store.incoming.iterdir()) == []


def test_the_same_content_is_the_same_version(store, origin):
    one = store.publish(copy(store, origin), "a", of(origin))
    inode = one.stat().st_ino
    (origin / "manifest.json").write_text("{}")
    assert store.publish(copy(store, origin), "a", of(origin)) == one
    assert one.stat().st_ino == inode


def test_a_damaged_version_is_replaced(store, origin):
    one = store.publish(copy(store, origin), "a", of(origin))
    (one / "adapter_config.json").write_text("lost")
    assert store.recall("a", of(origin)) is None
    assert store.publish(copy(store, origin), "a", of(origin)) == one
    assert (one / "adapter_config.json").read_text() == "{}"


def test_a_version_is_recalled_by_its_source_only(store, origin):
    source = of(origin)
    assert store.recall("a", source) is None
    one = store.publish(copy(store, origin), "a", source)
    assert store.recall("a", source) == one
    assert Store(store.root).recall("a", source) == one
    assert store.recall("b", source) is None
    (origin / "adapter_config.json").write_text("{ }")
    assert store.recall("a", of(origin)) is None
    one.with_name(f"{one.name}.json").write_text("{")
    assert store.recall("a", source) is None


@pytest.mark.parametrize("where", ["file", "folder", "top", "dots"])
def test_symlinks_are_refused(store, origin, tmp_path, where):
    folder = origin
    if where == "file":
        (origin / "link").symlink_to("/etc/hostname")
    elif where == "folder":
        (origin / "link").symlink_to("/etc")
    elif where == "top":
        folder = tmp_path / "link"
        folder.symlink_to(origin)
    else:
        folder = origin / ".." / "origin"
    with pytest.raises(StoreError, match="symlink"):
        copy(store, folder)
    assert store.folders() == []


def test_what_is_no_file_is_refused(store, origin):
    import os

    os.mkfifo(origin / "pipe")
    with pytest.raises(StoreError, match="no regular file"):
        copy(store, origin)


def test_a_folder_of_very_many_files_is_refused(store, origin):
    for n in range(1001):
        (origin / str(n)).touch()
    with pytest.raises(StoreError, match="more than 1000"):
        copy(store, origin)


def test_a_source_that_is_not_there_is_named(store, tmp_path):
    with pytest.raises(StoreError, match="is not there"):
        copy(store, tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="is not there"):
        copy(store, tmp_path / "file")


def test_an_artefact_that_does_not_match_its_name_is_refused(store, origin):
    right = origin.rename(origin.with_name(artifacts.digest(origin)))
    copy(store, right)
    wrong = right.rename(right.with_name("0" * 64))
    with pytest.raises(StoreError, match="the artefact is damaged"):
        copy(store, wrong)


def test_a_copy_can_be_cancelled(store, origin):
    event = threading.Event()
    event.set()
    with pytest.raises(Cancelled):
        store.copy("a", "file:///x", origin, event)
    assert store.folders() == []


def test_what_was_begun_is_kept_for_its_address_and_dropped_with_its_adapter(store):
    one = store.temporary("a", "hf://x/y")
    one.mkdir(parents=True)
    assert store.temporary("a", "hf://x/y") == one
    assert store.temporary("a", "hf://x/z") != one
    store.sweep({"a"})
    assert one.is_dir()
    store.sweep({"b"})
    assert not one.exists()


def test_the_last_version_takes_the_adapters_folder_with_it(store, origin):
    one = store.publish(copy(store, origin), "a", of(origin))
    (origin / "adapter_config.json").write_text("[]")
    two = store.publish(copy(store, origin), "a", of(origin))
    store.delete(one)
    assert store.folders() == [two]
    assert store.recall("a", of(origin)) == two
    assert not list((store.root / "a").glob(f"{one.name}*"))
    store.delete(two)
    assert not (store.root / "a").exists()


def test_a_changed_source_or_secret_is_another_source(origin, tmp_path):
    before = of(origin)
    assert of(origin) == before
    (origin / "adapter_config.json").write_text("{ }")
    assert of(origin) != before
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "token").write_text("old")
    fetched = of(tmp_path / "nowhere", fetch=True, secret=str(secret))
    (secret / "token").write_text("newer")
    assert of(tmp_path / "nowhere", fetch=True, secret=str(secret)) != fetched
    assert fingerprint(None) == fingerprint("/nowhere") == ""


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", "/a", "-a", "a-", "a\n", "a\x00", "ä", "x" * 64])
def test_names_that_are_no_served_names_are_none(name):
    assert not NAME.fullmatch(name)


@pytest.mark.parametrize("name", ["a", "A-1.b_c", "x" * 63, "a..b"])
def test_served_names(name):
    assert NAME.fullmatch(name)
