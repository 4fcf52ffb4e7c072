"""Pods, ranks, nodes and operators are killed at random while jobs run: every job ends as it should all the same.

    make chaos [CHAOS_MINUTES=30] [CHAOS_JOBS=20] [CHAOS_SEED=1]

writes its figures to chaos.json in the folder CHAOS_OUT, if that is set.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from chaos.faults import Chaos, Replica
from integration.harness import Kubectl, eventually, evidence, train
from tunesmith_cluster import Cluster

MINUTES = float(os.environ.get("CHAOS_MINUTES") or 30)
JOBS = int(os.environ.get("CHAOS_JOBS") or 20)
SEED = int(os.environ.get("CHAOS_SEED") or 1)
OUT = os.environ.get("CHAOS_OUT")
EVERY_STEPS = 5
BETWEEN_FAULTS = (3.0, 12.0)
SETTLE_SECONDS = 600

# Failures are meant to be many here; what is counted and what is not is tested elsewhere.
PATIENT = {"restartPolicy": {"maxRestarts": 1000, "backoffSeconds": 1}}


def job(number: int) -> tuple[dict[str, Any], str]:
    """The n-th job, and the word that it must end with."""
    kind = number % 10
    if kind == 8:
        return train(f"job-{number}", "bad-data", nodes=2, **PATIENT), "DataError"
    if kind == 9:
        return train(
            f"job-{number}", "oom", training={"globalBatchSize": 8, "microBatchSize": 4}, **PATIENT
        ), "Completed"
    nodes = 1 + number % 2
    steps = int(min(90, MINUTES * 12)) if MINUTES < 10 else 150
    more: dict[str, Any] = {"elastic": {"minNodes": 1, "waitSeconds": 40}} if kind in {1, 5} else {}
    spread = {
        "labelSelector": {"matchLabels": {"tunesmith.io/name": f"job-{number}"}},
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule" if more else "ScheduleAnyway",
    }
    return (
        train(
            f"job-{number}",
            "steps-400",
            nodes=nodes,
            training={"maxSteps": steps, "globalBatchSize": 4},
            checkpoint={"everySteps": EVERY_STEPS},
            podTemplate={"topologySpreadConstraints": [spread]},
            **PATIENT,
            **more,
        ),
        "Completed",
    )


def lost_steps(trace: list[dict[str, Any]]) -> list[int]:
    """Steps that each later attempt made again, by what rank 0 wrote."""
    starts = [i for i, line in enumerate(trace) if line["event"] == "start" and line["rank"] == 0]
    return [
        max((e["step"] for e in trace[:i] if e["event"] == "step"), default=0) - trace[i]["step"] for i in starts[1:]
    ]


def overlaps(trace: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Steps of an attempt after a later one had begun, and ranks that were there twice."""
    newest, found = 0, []
    for line in trace:
        if line["event"] == "start":
            newest = max(newest, line["attempt"])
        if line["event"] == "doubled" or (line["event"] == "step" and line["attempt"] < newest):
            found.append(line)
    return found


def resource_versions(kubectl: Kubectl) -> str:
    return kubectl("get", "ftj,job,configmap,service", "-o", "jsonpath={.items[*].metadata.resourceVersion}")


@pytest.mark.timeout(0)
def test_every_job_ends_as_it_should(cluster: Cluster, kubectl: Kubectl, tmp_path: Path) -> None:
    nodes = [one["metadata"]["name"] for one in kubectl.list("node")]
    replicas = [Replica(cluster, kubectl.namespace, tmp_path / f"operator-{n}.log") for n in range(2)]
    chaos = Chaos(cluster, kubectl, replicas, nodes, SEED)
    began, wanted = time.monotonic(), {}
    try:
        next_fault = began + 10
        while (elapsed := time.monotonic() - began) < MINUTES * 60:
            # The jobs come one after the other over the first two thirds of the time.
            while len(wanted) < min(JOBS, 1 + JOBS * elapsed / (MINUTES * 60 * 2 / 3)):
                body, word = job(len(wanted))
                kubectl.apply(body)
                wanted[body["metadata"]["name"]] = word
            if time.monotonic() >= next_fault:
                chaos.strike()
                next_fault = time.monotonic() + chaos.random.uniform(*BETWEEN_FAULTS)
            chaos.tend()
            time.sleep(0.5)
        chaos.mend_all()

        def over() -> bool:
            chaos.tend()
            return all(kubectl.condition("ftj", name).get("status") in {"True", "False"} for name in wanted)

        eventually(over, lambda: kubectl("get", "ftj", "-o", "wide"), SETTLE_SECONDS)
        settled = time.monotonic() - began
        before = resource_versions(kubectl)
        time.sleep(20)
        assert resource_versions(kubectl) == before, "idle operators write"
    finally:
        chaos.mend_all()
        for replica in replicas:
            replica.close()
    report(cluster, kubectl, wanted, chaos, settled)


def report(cluster: Cluster, kubectl: Kubectl, wanted: dict[str, str], chaos: Chaos, settled: float) -> None:
    """Check what the jobs left behind, and write the figures."""
    endings: Counter[str] = Counter()
    attempts, worst, traces = 0, 0, {}
    for name, word in wanted.items():
        status = kubectl.get("ftj", name)["status"]
        found = next(c for c in status["conditions"] if c["type"] == "Succeeded")["reason"]
        assert found == word, f"{name}: {found}, not {word}: {kubectl('describe', 'ftj', name)}"
        endings.update(one["reason"] for one in status["attempts"])
        attempts += status["attempts"][-1]["number"]
        numbers = [one["number"] for one in status["attempts"]]
        assert all(b == a + 1 for a, b in pairwise(numbers)), numbers
        if "steps" in json.dumps(kubectl.get("ftj", name)["spec"]["model"]):
            traces[name] = evidence(cluster, kubectl, name)
    for name, trace in traces.items():
        assert not overlaps(trace), f"{name}: {overlaps(trace)}"
        lost = lost_steps(trace)
        assert max(lost, default=0) <= EVERY_STEPS, f"{name}: {lost}"
        worst = max([worst, *lost])
        total = max(line["step"] for line in trace)
        assert {line["step"] for line in trace if line["event"] == "step"} == set(range(1, total + 1))
    owners = {ref["uid"] for kind in ("job", "configmap", "service") for one in kubectl.list(kind)
              for ref in one["metadata"].get("ownerReferences", [])}  # fmt: skip
    assert owners <= {one["metadata"]["uid"] for one in kubectl.list("ftj")}, "orphans"
    figures = {
        "minutes": MINUTES,
        "seed": SEED,
        "jobs": len(wanted),
        "faults": dict(chaos.done),
        "attempts": attempts,
        "endings of the newest ten attempts of each job": dict(endings),
        "most steps lost to one restart": worst,
        "steps between checkpoints": EVERY_STEPS,
        "seconds until all jobs were over": round(settled),
    }
    print(json.dumps(figures, indent=2))
    if OUT:
        (Path(OUT) / "chaos.json").write_text(json.dumps(figures, indent=2) + "\n")
