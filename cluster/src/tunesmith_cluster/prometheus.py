"""Debian's Prometheus and promtool, unpacked into the cache: installing the package would start a service."""

from __future__ import annotations

import http.client
import json
import shutil
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tunesmith_cluster import packages
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.probes import answers
from tunesmith_cluster.transient import free_ports, running

PACKAGE = "prometheus"


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
    [port] = free_ports(1)
    address = f"127.0.0.1:{port}"
    command = [str(program(paths, "prometheus")), f"--config.file={folder / 'prometheus.yaml'}"]
    command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={address}"]
    with running("Prometheus", command, answers(f"http://{address}/-/ready"), folder / "prometheus.log"):
        yield Prometheus(address)


def program(paths: Paths, name: str) -> Path:
    """`prometheus` or `promtool`: of this machine, else out of the package."""
    if found := shutil.which(name):
        return Path(found)
    return packages.unpacked(paths.cache, [PACKAGE]) / "usr" / "bin" / name
