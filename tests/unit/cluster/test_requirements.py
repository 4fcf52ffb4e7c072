"""What a machine lacks is told before minutes are spent: what was found, what is needed, what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from tunesmith_cluster import ClusterError, Paths, build, environments, requirements
from tunesmith_cluster.environments import TRAINER
from tunesmith_cluster.requirements import Need

CACHE, STATE, HOME = Path("/cache"), Path("/state"), Path("/home/me")
NEEDS = [Need(HOME, 3e9, "Go's caches"), Need(HOME, 4e9, "Go's caches"), Need(CACHE, 8e9, "packages")]
NEEDS.append(Need(STATE, 3e9, "models"))


def test_a_disk_must_have_room_for_all_that_comes_to_it() -> None:
    disks = {CACHE: 1, HOME: 1, STATE: 2}
    free = {CACHE: 15e9, HOME: 15e9, STATE: 3e9}
    assert requirements.lacking_room(NEEDS, free.__getitem__, disks.__getitem__) == []
    free = {CACHE: 12.5e9, HOME: 12.5e9, STATE: 3e9}
    assert requirements.lacking_room(NEEDS, free.__getitem__, disks.__getitem__) == [
        "room on the disk of /home/me and /cache: 12.5 GB are free, and 15.0 GB are needed (7.0 GB for Go's caches, "
        "8.0 GB for packages): make room, or choose another disk by TUNESMITH_CACHE, TUNESMITH_CLUSTER_STATE, GOCACHE "
        "and GOMODCACHE"
    ]


def test_a_machine_that_has_everything_needs_no_room(tmp_path: Path) -> None:
    paths = Paths(cache=tmp_path / "cache", state=tmp_path / "state")
    fresh = requirements.needs(paths, {"GOCACHE": "/go"})
    assert {need.path for need in fresh} == {Path("/go"), Path.home(), paths.cache, paths.state}
    assert 20e9 < sum(need.size for need in fresh) < 30e9  # what README.md asks for
    for module in build.MODULES:
        build.binary(paths.cache, next(iter(module.commands))).parent.mkdir(parents=True)
    environment = environments.folder(paths, TRAINER)
    environment.mkdir(parents=True)
    (environment / environments.DONE).touch()
    paths.volumes.mkdir(parents=True)
    assert requirements.needs(paths, {}) == []


def test_too_little_memory() -> None:
    assert requirements.lacking_memory(10e9) == []
    [said] = requirements.lacking_memory(7.9e9)
    assert said.startswith("memory: 7.9 GB are available, and trainings and engines take 10.0 GB at the same time: end")


@pytest.mark.parametrize(("limit", "expected"), [("max", 8e9), ("4000000000", 4e9), ("9223372036854771712", 8e9)])
@pytest.mark.parametrize("file", ["memory.max", "memory/memory.limit_in_bytes"])
def test_a_containers_limit_counts(tmp_path: Path, file: str, limit: str, expected: float) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:       16000000 kB\nMemAvailable:    7812500 kB\n")
    (tmp_path / "cgroup" / file).parent.mkdir(parents=True)
    (tmp_path / "cgroup" / file).write_text(f"{limit}\n")
    assert requirements.available_memory(tmp_path, tmp_path / "cgroup") == expected


@pytest.mark.parametrize(
    ("held", "missing"),
    [
        ("000001ffffffffff", ""),
        ("00000000a80425fb", "no CAP_NET_ADMIN and no CAP_SYS_ADMIN"),  # Docker's default
        ("00000000a80435fb", "root has no CAP_SYS_ADMIN here"),
    ],
)
def test_root_of_a_container_may_not_do_what_a_node_does(held: str, missing: str) -> None:
    said = requirements.lacking_rights(f"Name:\tpython\nCapPrm:\t0000000000000000\nCapEff:\t{held}\n")
    assert all(missing in each for each in said)
    assert bool(said) is bool(missing)


def test_all_that_is_lacking_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = Paths(cache=tmp_path / "cache", state=tmp_path / "state")
    monkeypatch.setattr(requirements, "lacking_rights", lambda _: [])
    monkeypatch.setattr(requirements, "available_memory", lambda: 1e9)
    monkeypatch.setattr(requirements.disk, "free", lambda _: 1e9)
    with pytest.raises(ClusterError, match=r"(?s)lacks what is needed:\n- memory: 1\.0 GB.*\n- room on the disk"):
        requirements.require(paths, memory=True)
    monkeypatch.setattr(requirements.disk, "free", lambda _: 1e12)
    requirements.require(paths, memory=False)
