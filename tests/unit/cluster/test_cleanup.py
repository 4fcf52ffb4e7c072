"""Finding what a cluster leaves behind, and nothing else."""

from pathlib import Path

import pytest
from tunesmith_cluster import Paths, golang, network, ports, teardown

PATHS = Paths(cache=Path("/cache"), state=Path("/state"))


def test_only_the_rules_of_kubernetes_cni_and_ours_are_removed() -> None:
    mine = (
        "*nat\n"
        ":PREROUTING ACCEPT [5:300]\n"
        ":DOCKER - [0:0]\n"
        '[1:60] -A PREROUTING -m comment --comment "not a KUBE- rule" -j DOCKER\n'
        "[0:0] -A DOCKER -i docker0 -j RETURN\n"
        "COMMIT\n"
    )
    lines = mine.splitlines(keepends=True)
    cluster = [
        ":KUBE-SERVICES - [0:0]\n",
        ":CNI-0a1b2c - [0:0]\n",
        '[0:0] -A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES\n',
        "[0:0] -A KUBE-SERVICES -d 10.223.0.1/32 -j KUBE-SVC-NPX46M4PTMTKRN6Y\n",
        "[0:0] -A CNI-0a1b2c -d 10.222.0.0/16 -j ACCEPT\n",
        ":TUNESMITH-POSTROUTING - [0:0]\n",
        "[0:0] -A POSTROUTING -j TUNESMITH-POSTROUTING\n",
        "[0:0] -A TUNESMITH-POSTROUTING -s 10.222.0.0/16 ! -d 10.222.0.0/16 -j MASQUERADE\n",
    ]
    assert network.without_cluster_rules("".join([*lines[:3], *cluster, *lines[3:]])) == mine
    assert network.without_cluster_rules(mine) == mine


def test_inner_mounts_come_first_and_others_not_at_all() -> None:
    mountinfo = "\n".join(
        f"36 35 98:0 / {point} rw,noatime - ext3 /dev/root rw"
        for point in ("/", "/state", "/state/kubelet", "/state/kubelet/pods/1/a\\040b", "/statement", "/proc")
    )
    assert teardown.mounts_under(PATHS.state, mountinfo) == [
        "/state/kubelet/pods/1/a b",
        "/state/kubelet",
        "/state",
    ]


@pytest.mark.parametrize(
    ("command", "stray"),
    [
        (["/cache/bin/x/etcd", "--data-dir=/state/etcd"], True),
        (["containerd", "--config", "/state/config/containerd.toml"], True),
        (["containerd"], False),
        (["/cache/bin/x/etcd", "--data-dir=/statement/etcd"], False),
        (["tail", "-f", "/state/log/etcd.log"], False),
        (["/cache/bin/x/kubectl", "--kubeconfig=/state/kubeconfig/admin.yaml", "get", "pods"], False),
        ([], False),
    ],
)
def test_a_stray_is_a_daemon_of_this_cluster(command: list[str], stray: bool) -> None:
    assert teardown.is_stray(command, PATHS) is stray


def test_listeners_are_read_from_the_kernels_table() -> None:
    table = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0100007F:094B 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1\n"
        "   1: 0100007F:094B 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4243 1\n"
    )
    assert ports.parse_listeners(table) == [ports.Listener("127.0.0.1", 2379, 4242)]


def test_a_listener_on_all_addresses_is_in_the_way_too() -> None:
    everywhere = ports.Listener("0.0.0.0", 6443, 1)
    elsewhere = ports.Listener("192.0.2.1", 6443, 2)
    other_port = ports.Listener("0.0.0.0", 6444, 3)
    found = ports.conflicts([(network.HOST_IP, 6443)], [everywhere, elsewhere, other_port])
    assert found == [everywhere]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("go version go1.26.8 linux/amd64", (1, 26)),
        ("go version go1.27rc1 linux/amd64", (1, 27)),
        ("command not found", None),
    ],
)
def test_go_versions(text: str, version: tuple[int, int] | None) -> None:
    assert golang.parse_version(text) == version
