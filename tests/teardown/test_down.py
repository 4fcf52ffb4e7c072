"""A cluster survives the machine's restart, and `make down` leaves the machine as `up` found it. The last suite: there
is no cluster after it.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from integration.harness import Kubectl, eventually
from tunesmith_cluster import Cluster
from tunesmith_cluster.kueue import KUEUE
from tunesmith_cluster.node import PAUSE_IMAGE

POD = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web"},
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {
                "topologySpreadConstraints": [
                    {
                        "topologyKey": "kubernetes.io/hostname",
                        "maxSkew": 1,
                        "whenUnsatisfiable": "DoNotSchedule",
                        "labelSelector": {"matchLabels": {"app": "web"}},
                    }
                ],
                "containers": [
                    {
                        "name": "web",
                        "image": PAUSE_IMAGE,
                        "imagePullPolicy": "IfNotPresent",
                        "volumeMounts": [{"name": "v", "mountPath": "/v"}],
                    }
                ],
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "v"}}],
            },
        },
    },
}
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "web"},
    "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]},
}
CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "v"},
    "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Mi"}}},
}


def said(*command: str) -> list[str]:
    return sorted(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines())


def machine(cluster: Cluster) -> dict[str, list[str]]:
    """What a cluster could leave behind."""
    folders = ("/run/netns", "/run/containerd", "/var/log/pods", "/var/lib/cni", "/etc/cni", "/var/lib/kubelet")
    commands = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            commands.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has ended
            continue
    ours = (str(cluster.paths.state), str(cluster.paths.cache / "bin"), "containerd-shim", "/pause")
    return {
        "mounts": sorted(line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()),
        "links": sorted(path.name for path in Path("/sys/class/net").iterdir()),
        "rules": [line for line in said("iptables-save") if not line.startswith(("#", ":"))],
        "chains": [line.split()[0] for line in said("iptables-save") if line.startswith(":")],
        "folders": sorted(str(path) for folder in folders for path in Path(folder).glob("**/*")),
        "processes": sorted(command for command in commands if any(word in command for word in ours)),
        "control groups": sorted(
            str(path) for word in ("kube", "tunesmith") for path in Path("/sys/fs/cgroup").glob(f"**/*{word}*")
        ),
        "state": [str(cluster.paths.state)] if cluster.paths.state.exists() else [],
    }


def is_serving(kubectl: Kubectl) -> bool:
    status = kubectl.get("deployment", "web")["status"]
    return status["observedGeneration"] > 0 and status.get("readyReplicas") == 2


def containers(kubectl: Kubectl) -> set[str]:
    return {each["containerID"] for pod in kubectl.list("pod") for each in pod["status"].get("containerStatuses", [])}


def restart(cluster: Cluster) -> None:
    """Leave the cluster as the machine's restart does: its files, and process ids that are now somebody else's."""
    records = {path: json.loads(path.read_text()) for path in cluster.paths.pids.glob("*.json")}
    cluster.kill()
    for path, record in records.items():
        path.write_text(json.dumps(record | {"boot_id": "earlier", "pid": 1}))


def test_down_leaves_the_machine_as_up_found_it() -> None:
    cluster = Cluster()
    cluster.down()
    before = machine(cluster)
    assert before["processes"] == []
    assert before["state"] == []
    cluster.up(nodes=2, managers=[KUEUE])
    kubectl = Kubectl(cluster.binary("kubectl"), "default", cluster.kubeconfig)
    kubectl.apply(CLAIM, POD, SERVICE)
    eventually(lambda: is_serving(kubectl), lambda: kubectl("get", "pods"))
    during = machine(cluster)
    assert len(during["mounts"]) > len(before["mounts"])
    assert len(during["rules"]) > len(before["rules"])
    assert {"tunesmith0", "tunesmith1"} <= set(during["links"])
    assert {pod["spec"]["nodeName"] for pod in kubectl.list("pod")} == {"node-0", "node-1"}
    before_restart = containers(kubectl)
    restart(cluster)
    cluster.up()
    eventually(
        lambda: is_serving(kubectl) and not before_restart & containers(kubectl),
        lambda: kubectl("describe", "pods"),
    )
    cluster.down()
    assert machine(cluster) == before
    cluster.down()  # once more is no error
