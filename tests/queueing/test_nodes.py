"""Two nodes on one machine, and losing one of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from integration.harness import Kubectl, eventually
from queueing.resources import conditions, headless, job, one_per_node, pods_of
from tunesmith_cluster import Cluster

LOST = "node-1"
TOLERATIONS = [
    {"key": f"node.kubernetes.io/{taint}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 3}
    for taint in ("not-ready", "unreachable")
]
# Each serves the store, and asks the other, by its name and then by the Service's address, for what it wrote itself.
PAIR = """\
import http.server, os, threading, time, urllib.request
own = os.environ["JOB_COMPLETION_INDEX"]
open(own, "w").write(os.environ["HOSTNAME"])
server = http.server.ThreadingHTTPServer(("", 8000), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=server.serve_forever, daemon=True).start()
for host in (f"pair-{1 - int(own)}.pair:8000", "both:80"):
    while True:
        try:
            assert urllib.request.urlopen(f"http://{host}/{own}", timeout=5).read().decode() == os.environ["HOSTNAME"]
            break
        except OSError as error:
            print(error, flush=True)
            time.sleep(0.5)
open(f"{own}.done", "w").close()
while not (os.path.exists("0.done") and os.path.exists("1.done")):
    time.sleep(0.2)
"""
BEATING = """\
trap 'echo term >>log-$JOB_COMPLETION_INDEX; exit 143' TERM
while true; do date +%s >beat-$JOB_COMPLETION_INDEX; sleep 0.5; done
"""


def node_is_ready(kubectl: Kubectl) -> bool:
    return conditions(kubectl.get("node", LOST))["Ready"][0] == "True"


def start_beating(kubectl: Kubectl) -> tuple[str, str]:
    """A Job with a pod on each node. Returns the names of the pod on the node to be lost, and of the other."""
    kubectl.apply(
        job("beating", BEATING, pods=2, affinity=one_per_node("beating"), tolerations=TOLERATIONS),
    )
    kubectl.wait_for_pods(2)
    by_node = {pod["spec"]["nodeName"]: pod["metadata"]["name"] for pod in pods_of(kubectl, "beating")}
    return by_node.pop(LOST), by_node.popitem()[1]


def evicted(kubectl: Kubectl, name: str) -> dict[str, Any] | None:
    pod = kubectl.get("pod", name)
    return pod if "deletionTimestamp" in pod["metadata"] else None


def test_pods_on_two_nodes_reach_each_other_and_share_a_claim(
    cluster: Cluster, kubectl: Kubectl, tmp_path: Path
) -> None:
    (tmp_path / "pair.py").write_text(PAIR)
    image = "queueing-pair:1"
    cluster.load_image(image, copies=[(tmp_path / "pair.py", "/pair.py")])
    both = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "both"},
        "spec": {"selector": {"job-name": "pair"}, "ports": [{"port": 80, "targetPort": 8000}]},
    }
    pair = job("pair", "exec python3 -u /pair.py", pods=2, image=image, affinity=one_per_node("pair"))
    kubectl.apply(headless("pair"), both, pair)
    eventually(
        lambda: conditions(kubectl.get("job", "pair")).get("Complete", ("", ""))[0] == "True",
        lambda: kubectl("get", "pods") + kubectl("logs", "--selector=job-name=pair"),
    )
    first, second = pods_of(kubectl, "pair")
    assert {first["spec"]["nodeName"], second["spec"]["nodeName"]} == {"node-0", LOST}
    # It sees the other's own address, not the node's.
    assert second["status"]["podIP"] in kubectl("logs", first["metadata"]["name"])


def test_the_pods_of_a_lost_node_are_evicted_but_not_replaced(lossy: Cluster, kubectl: Kubectl) -> None:
    lost, left = start_beating(kubectl)
    lossy.kill_node(LOST)
    eventually(lambda: not node_is_ready(kubectl), lambda: kubectl("get", "nodes"))
    pod = eventually(lambda: evicted(kubectl, lost), lambda: kubectl("get", "pods"))
    assert conditions(pod)["DisruptionTarget"] == ("True", "DeletionByTaintManager")
    # Nobody can tell whether it still runs: the Job waits, and neither fails nor starts another of its index.
    time.sleep(5)
    status = kubectl.get("job", "beating")["status"]
    assert (status["active"], status["terminating"], status.get("failed", 0)) == (1, 1, 0)
    assert {each["metadata"]["name"] for each in pods_of(kubectl, "beating")} == {lost, left}
    assert lossy.status().nodes == {"node-0": True, LOST: False}
    image = f"{kubectl.namespace}:1"
    lossy.load_image(image)

    lossy.start_node(LOST)
    eventually(lambda: node_is_ready(kubectl), lambda: kubectl("get", "nodes"))
    eventually(
        lambda: conditions(kubectl.get("job", "beating")).get("Failed") == ("True", "BackoffLimitExceeded"),
        lambda: kubectl("get", "job", "beating", "-o", "yaml"),
    )
    # It has caught up on the images, too.
    kubectl.apply(job("late", "true", image=image, nodeName=LOST))
    eventually(
        lambda: conditions(kubectl.get("job", "late")).get("Complete", ("", ""))[0] == "True",
        lambda: kubectl("describe", "pods", "--selector=job-name=late"),
    )


def test_a_node_that_only_fell_silent_goes_on_with_its_pods(lossy: Cluster, kubectl: Kubectl) -> None:
    lost, left = start_beating(kubectl)
    index = lost.split("-")[1]

    def read(file: str) -> str:
        return kubectl("exec", left, "--", "cat", f"/store/{file}", check=False)

    lossy.kill_kubelet(LOST)
    eventually(lambda: evicted(kubectl, lost), lambda: kubectl("get", "pods"))
    before = read(f"beat-{index}")
    eventually(lambda: read(f"beat-{index}") != before, lambda: f"{lost} wrote nothing since {before}")
    lossy.start_node(LOST)
    eventually(lambda: "term" in read(f"log-{index}"), lambda: kubectl("get", "pods"))
