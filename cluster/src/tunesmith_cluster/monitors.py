"""ServiceMonitors and PodMonitors -> what Prometheus scrapes, as the Prometheus operator and Prometheus find it.

Debian's Prometheus is built without its own discovery of Kubernetes' objects, so it is told of targets by files.
Only what the chart's monitors use: https://prometheus-operator.dev/docs/api-reference/api/
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Object = Mapping[str, Any]
ENDPOINTS = {"ServiceMonitor": "endpoints", "PodMonitor": "podMetricsEndpoints"}
SEEN = ("Pod", "Service", "EndpointSlice")
"""Kinds of the objects that targets are found among."""
OVER = {"Failed", "Succeeded"}


def jobs(manifests: Iterable[Object]) -> list[tuple[str, Object, Object]]:
    """(name, monitor, endpoint) of each endpoint of each monitor among `manifests`."""
    return [
        (f"{monitor['kind']}/{monitor['metadata']['name']}/{endpoint['port']}", monitor, endpoint)
        for monitor in manifests
        if monitor["kind"] in ENDPOINTS
        for endpoint in monitor["spec"][ENDPOINTS[monitor["kind"]]]
    ]


def scrape_config(job: str, endpoint: Object, file: Path) -> dict[str, Any]:
    """The part of Prometheus's configuration for an endpoint whose targets are in `file`."""
    return {
        "job_name": job,
        "scrape_interval": endpoint.get("interval", "30s"),
        "metrics_path": endpoint.get("path", "/metrics"),
        "honor_labels": endpoint.get("honorLabels", False),
        "file_sd_configs": [{"files": [str(file)], "refresh_interval": "1s"}],
    }


def targets(monitor: Object, port: str, objects: Sequence[Object]) -> list[dict[str, Any]]:
    """Target groups, one for each pod that the monitor selects among `objects` and that has the port."""
    seen = [one for one in objects if _in_namespace(monitor, one)]
    by_name = {(p["metadata"]["namespace"], p["metadata"]["name"]): p for p in seen if p["kind"] == "Pod"}
    find = _of_pods if monitor["kind"] == "PodMonitor" else _of_services
    groups = []
    for address, pod in find(monitor, port, seen):
        found = by_name.get(pod)
        if found is None or found["status"].get("phase") in OVER:
            continue
        labels = {"namespace": pod[0], "pod": pod[1]}
        for name in monitor["spec"].get("podTargetLabels", ()):
            if value := found["metadata"].get("labels", {}).get(name):
                labels[re.sub(r"\W", "_", name)] = value
        groups.append({"targets": [address], "labels": labels})
    return groups


Found = Iterator[tuple[str, tuple[str, str]]]
"""(address, (namespace, name) of the pod)"""


def _of_pods(monitor: Object, port: str, objects: Sequence[Object]) -> Found:
    for pod in objects:
        if pod["kind"] != "Pod" or not _selected(monitor, pod) or "podIP" not in pod["status"]:
            continue
        for container in (*pod["spec"]["containers"], *pod["spec"].get("initContainers", ())):
            for one in container.get("ports", ()):
                if one.get("name") == port:
                    address = f"{pod['status']['podIP']}:{one['containerPort']}"
                    yield address, (pod["metadata"]["namespace"], pod["metadata"]["name"])


def _of_services(monitor: Object, port: str, objects: Sequence[Object]) -> Found:
    services = {
        (one["metadata"]["namespace"], one["metadata"]["name"])
        for one in objects
        if one["kind"] == "Service" and _selected(monitor, one)
    }
    for piece in objects:
        meta = piece["metadata"]
        owner = (meta["namespace"], meta.get("labels", {}).get("kubernetes.io/service-name"))
        if piece["kind"] != "EndpointSlice" or owner not in services:
            continue
        numbers = [one["port"] for one in piece.get("ports") or () if one.get("name") == port]
        for endpoint in piece.get("endpoints") or ():
            for number in numbers:
                if "targetRef" in endpoint:
                    yield f"{endpoint['addresses'][0]}:{number}", (meta["namespace"], endpoint["targetRef"]["name"])


def _in_namespace(monitor: Object, one: Object) -> bool:
    wanted = monitor["spec"].get("namespaceSelector", {})
    names = wanted.get("matchNames") or [monitor["metadata"]["namespace"]]
    return bool(wanted.get("any")) or one["metadata"]["namespace"] in names


def _selected(monitor: Object, one: Object) -> bool:
    wanted: Mapping[str, str] = monitor["spec"]["selector"]["matchLabels"]
    labels: Mapping[str, str] = one["metadata"].get("labels", {})
    return wanted.items() <= labels.items()


@contextmanager
def discovery(
    manifests: Sequence[Object], look: Callable[[], Sequence[Object]], folder: Path, seconds: float = 1
) -> Iterator[list[dict[str, Any]]]:
    """The scrape configurations of the monitors among `manifests`, whose targets are kept up to date while the context
    lasts. `look` lists the objects of all kinds in SEEN.
    """
    files = {job: folder / f"targets-{number}.json" for number, (job, _, _) in enumerate(jobs(manifests))}
    stop = threading.Event()

    def write() -> None:
        objects = look()
        for job, monitor, endpoint in jobs(manifests):
            text = json.dumps(targets(monitor, endpoint["port"], objects))
            if not files[job].exists() or files[job].read_text() != text:
                partial = files[job].with_suffix(".partial")
                partial.write_text(text)
                partial.rename(files[job])

    def keep() -> None:
        while not stop.wait(seconds):
            write()

    write()
    thread = threading.Thread(target=keep)
    thread.start()
    try:
        yield [scrape_config(job, endpoint, files[job]) for job, _, endpoint in jobs(manifests)]
    finally:
        stop.set()
        thread.join()
