"""Debian's Prometheus and promtool, unpacked into the cache: installing the package would start a service."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from tunesmith_cluster.errors import ClusterError
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.probes import answers, await_start

PACKAGE = "prometheus"
START_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A server that runs."""

    address: str
    """host:port"""

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The vector that an expression is now: labels as `metric`, [time, value] as `value`."""
        result: list[dict[str, Any]] = self._get("query", query=expression)["result"]
        return result

    def value(self, expression: str) -> float | None:
        """The value of an expression that has one; None for one that has none, such as a series that is not there."""
        found = self.query(expression)
        if len(found) > 1:
            raise ValueError(f"{expression} has {len(found)} values: {found}")
        return float(found[0]["value"][1]) if found else None

    def firing(self) -> dict[str, dict[str, str]]:
        """The alerts that fire: name -> labels."""
        alerts = self._get("alerts")["alerts"]
        return {one["labels"]["alertname"]: one["labels"] for one in alerts if one["state"] == "firing"}

    def targets(self) -> list[dict[str, Any]]:
        """What is scraped, with `health` and `lastError`."""
        result: list[dict[str, Any]] = self._get("targets", state="active")["activeTargets"]
        return result

    def _get(self, path: str, **parameters: str) -> Any:
        status, body = _get(self.address, f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        if status != http.client.OK:
            raise ValueError(f"Prometheus refuses {path} {parameters}: {body.decode()}")
        return json.loads(body)["data"]


def _get(address: str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@contextmanager
def serving(
    paths: Paths,
    folder: Path,
    scrape_configs: Sequence[Mapping[str, Any]],
    rules: Mapping[str, Any] | None = None,
    interval: str = "1s",
) -> Iterator[Prometheus]:
    """A Prometheus on a port of the loopback, while the context lasts. Data and log are in `folder`. `rules`: the
    content of a rules file.
    """
    settings = {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval}
    body = {"global": settings, "scrape_configs": list(scrape_configs), "rule_files": [str(folder / "rules.yaml")]}
    (folder / "rules.yaml").write_text(yaml.safe_dump(dict(rules or {"groups": []})), encoding="utf-8")
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(body), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [str(program(paths, "prometheus")), f"--config.file={folder / 'prometheus.yaml'}"]
    command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        ready = answers(f"http://{address}/-/ready")
        await_start(process, ready, "Prometheus", folder / "prometheus.log", START_SECONDS)
        yield Prometheus(address)
    finally:
        process.terminate()
        process.wait(30)


def program(paths: Paths, name: str) -> Path:
    """`prometheus` or `promtool`: of this machine, else out of the package."""
    if found := shutil.which(name):
        return Path(found)
    folder = paths.envs.parent / PACKAGE
    if not (folder / "usr" / "bin" / name).exists():
        _unpack(folder)
    return folder / "usr" / "bin" / name


def _unpack(folder: Path) -> None:
    if shutil.which("apt-get") is None:
        raise ClusterError(f"this machine has no apt-get: put {PACKAGE} and promtool on PATH")
    with TemporaryDirectory(dir=folder.parent) as download:
        _run("apt-get", "download", PACKAGE, folder=download)
        [package] = Path(download).glob("*.deb")
        unpacked = Path(download) / "files"
        _run("dpkg-deb", "-x", str(package), str(unpacked), folder=download)
        if not folder.exists():  # else another process was faster
            os.rename(unpacked, folder)


def _run(*command: str, folder: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"`{' '.join(command)}` failed:\n{done.stderr[-2000:]}")
