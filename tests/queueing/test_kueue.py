"""Kueue starts, suspends and resumes Jobs of the form that the operator makes."""

from __future__ import annotations

from typing import Any

from integration.harness import Kubectl, eventually
from queueing.conftest import MakePriority, MakeQueue
from queueing.resources import (
    INDEX_LABEL,
    PRIORITY_LABEL,
    QUEUE_LABEL,
    conditions,
    job,
    pods_of,
    workload_of,
)

# Longer to end than the preemptor takes: the Job is admitted anew while its old pods still end.
STUBBORN = """\
index=$JOB_COMPLETION_INDEX
echo "$HOSTNAME start" >>log-$index
trap 'echo "$HOSTNAME term" >>log-$index; sleep 8; echo "$HOSTNAME end" >>log-$index; exit 143' TERM
while [ ! -e stop ]; do sleep 0.2; done
echo "$HOSTNAME end" >>log-$index
"""


def wait(kubectl: Kubectl, name: str, condition: str, wanted: tuple[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = eventually(
        lambda: each if conditions(each := workload_of(kubectl, name)).get(condition) == wanted else None,
        lambda: f"{name}: wanted {condition} {wanted}, found {conditions(workload_of(kubectl, name))}",
    )
    return found


def succeeded(kubectl: Kubectl, name: str) -> bool:
    return conditions(kubectl.get("job", name)).get("Complete", ("", ""))[0] == "True"


def log(kubectl: Kubectl, index: int) -> list[str]:
    """What the pods of an index wrote, in order."""
    reader = next(pod for pod in pods_of(kubectl, "reader") if pod["status"]["phase"] == "Running")
    return kubectl("exec", reader["metadata"]["name"], "--", "cat", f"log-{index}").splitlines()


def test_the_second_job_waits_for_the_firsts_quota(kubectl: Kubectl, make_queue: MakeQueue) -> None:
    labels = {QUEUE_LABEL: make_queue(cpu="1")}
    kubectl.apply(job("first", "while [ ! -e stop ]; do sleep 0.2; done", cpu="600m", labels=labels))
    wait(kubectl, "first", "Admitted", ("True", "Admitted"))
    kubectl.apply(job("second", "touch done", cpu="600m", labels=labels))
    waiting = wait(kubectl, "second", "QuotaReserved", ("False", "Pending"))
    assert "Admitted" not in conditions(waiting)
    assert next(each["message"] for each in waiting["status"]["conditions"] if each["type"] == "QuotaReserved") == (
        "couldn't assign flavors to pod set main: insufficient unused quota for cpu in flavor "
        f"{kubectl.namespace}-0, 200m more needed"
    )
    assert kubectl.get("job", "second")["spec"]["suspend"] is True
    assert pods_of(kubectl, "second") == []
    kubectl.apply(job("stop", "touch stop"))  # one without a queue is none of Kueue's business
    eventually(lambda: succeeded(kubectl, "second"), lambda: kubectl("get", "jobs,workloads"))
    assert succeeded(kubectl, "first")
    wait(kubectl, "second", "Finished", ("True", "Succeeded"))


def test_what_a_queue_can_never_hold_says_so(kubectl: Kubectl, make_queue: MakeQueue) -> None:
    kubectl.apply(job("large", "true", cpu="1500m", labels={QUEUE_LABEL: make_queue(cpu="1")}))
    waiting = wait(kubectl, "large", "QuotaReserved", ("False", "Pending"))
    [message] = [each["message"] for each in waiting["status"]["conditions"] if each["type"] == "QuotaReserved"]
    assert "insufficient quota for cpu" in message


def test_a_queue_that_does_not_exist_says_so(kubectl: Kubectl) -> None:
    kubectl.apply(job("lost", "true", labels={QUEUE_LABEL: "nowhere"}))
    waiting = wait(kubectl, "lost", "QuotaReserved", ("False", "Inadmissible"))
    [message] = [each["message"] for each in waiting["status"]["conditions"] if each["type"] == "QuotaReserved"]
    assert message == "LocalQueue nowhere doesn't exist"


def test_the_higher_priority_suspends_the_lower_which_resumes(
    kubectl: Kubectl, make_queue: MakeQueue, make_priority: MakePriority
) -> None:
    labels = {QUEUE_LABEL: make_queue(cpu="1")}
    kubectl.apply(job("reader", "sleep 600"), job("low", STUBBORN, pods=2, cpu="500m", labels=labels))
    kubectl.wait_for_pods(3)
    before = {pod["metadata"]["name"] for pod in pods_of(kubectl, "low")}

    high = job("high", "sleep 1", cpu="600m", labels={**labels, PRIORITY_LABEL: make_priority(1000)})
    kubectl.apply(high)
    preempted = wait(kubectl, "low", "Preempted", ("True", "InClusterQueue"))
    assert conditions(preempted)["Evicted"] == ("True", "Preempted")
    eventually(lambda: succeeded(kubectl, "high"), lambda: kubectl("get", "jobs,workloads,pods"))

    most: dict[str, int] = {}

    def resumed() -> bool:
        alive = [pod for pod in pods_of(kubectl, "low") if pod["status"]["phase"] in ("Pending", "Running")]
        for index in (pod["metadata"]["labels"][INDEX_LABEL] for pod in alive):
            number = sum(pod["metadata"]["labels"][INDEX_LABEL] == index for pod in alive)
            most[index] = max(number, most.get(index, 0))
        fresh = {pod["metadata"]["name"] for pod in alive if pod["status"]["phase"] == "Running"} - before
        return len(fresh) == 2

    eventually(resumed, lambda: kubectl("get", "jobs,workloads,pods"))
    assert most == {"0": 1, "1": 1}
    again = workload_of(kubectl, "low")
    assert conditions(again)["Admitted"] == ("True", "Admitted")
    assert "failed" not in kubectl.get("job", "low")["status"]  # so that backoffLimit: 0 is no end of it

    kubectl("exec", pods_of(kubectl, "reader")[0]["metadata"]["name"], "--", "touch", "stop")
    eventually(lambda: succeeded(kubectl, "low"), lambda: kubectl("get", "jobs,workloads,pods"))
    for index in range(2):
        words = [line.split() for line in log(kubectl, index)]
        assert [word for _, word in words] == ["start", "term", "end", "start", "end"]
        assert len({pod for pod, _ in words[:3]}) == len({pod for pod, _ in words[3:]}) == 1
