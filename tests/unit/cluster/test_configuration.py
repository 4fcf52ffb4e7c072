"""What is rendered for the node and the control plane."""

import ipaddress
import json
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from tunesmith_cluster import ClusterError, Paths, addons, build, components, controlplane, credentials, network, node
from tunesmith_cluster.nodes import Node, at_least, existing, named
from tunesmith_cluster.processes import Service

PATHS = Paths(cache=Path("/cache"), state=Path("/state"))
FIRST, SECOND = Node(PATHS, 0), Node(PATHS, 1)


def test_paths_come_from_the_environment() -> None:
    paths = Paths.from_environment({"TUNESMITH_CACHE": "/c", "TUNESMITH_CLUSTER_STATE": "/s"})
    assert (paths.cache, paths.state) == (Path("/c"), Path("/s"))
    assert Paths.from_environment({"TUNESMITH_CACHE": ""}).state == Path("/var/lib/tunesmith-cluster")


def test_containers_see_the_userland_the_environments_and_this_interpreter() -> None:
    shown = node.shown_in_containers(PATHS.envs)
    assert "/usr" in shown
    assert "/cache/envs" in shown
    assert any(Path(sys.base_prefix).is_relative_to(path) for path in shown)
    assert len(shown) == len(set(shown))


def test_the_base_spec_adds_read_only_mounts_and_keeps_the_rest() -> None:
    default = {
        "ociVersion": "1.0.2",
        "process": {"cwd": "/", "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}]},
        "mounts": [{"destination": "/proc"}],
    }
    spec = node.base_runtime_spec(default, ["/usr", "/absent"], exists=lambda path: path == "/usr")
    assert spec["ociVersion"] == "1.0.2"
    assert spec["process"] == {"cwd": "/"}
    assert spec["mounts"] == [
        {"destination": "/proc"},
        {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]},
    ]


def test_everything_containerd_writes_is_in_the_nodes_folder() -> None:
    config = tomllib.loads(node.containerd_config(SECOND))
    runc = config["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]["runc"]
    written = [config["root"], config["state"], config["grpc"]["address"], runc["options"]["Root"]]
    assert all(path.startswith("/state/nodes/node-1/") for path in written)
    assert runc["base_runtime_spec"] == "/state/config/base-spec.json"


def test_the_pod_network() -> None:
    bridge, _ = json.loads(node.cni_config(SECOND))["plugins"]
    assert bridge["bridge"] == "tunesmith1"
    assert bridge["ipam"]["ranges"] == [[{"subnet": "10.222.1.0/24", "gateway": "10.222.1.1"}]]
    assert bridge["ipam"]["dataDir"].startswith("/state/nodes/node-1/")
    assert "ipMasq" not in bridge  # it would hide the pods of one node from those of the other


@pytest.mark.parametrize("each", [FIRST, SECOND], ids=lambda each: each.name)
def test_a_nodes_addresses(each: Node) -> None:
    pods = ipaddress.ip_network(each.pod_cidr)
    assert pods.subnet_of(ipaddress.ip_network(network.POD_CIDR))  # type: ignore[arg-type]
    assert ipaddress.ip_address(each.address) in pods


def test_the_api_server_is_at_the_first_bridge() -> None:
    assert FIRST.address == network.HOST_IP


def test_the_kubelet() -> None:
    config = yaml.safe_load(node.kubelet_config(FIRST))
    assert config["failCgroupV1"] is False
    assert config["cgroupDriver"] == "cgroupfs"
    assert config["authentication"]["anonymous"] == {"enabled": False}
    assert config["clusterDNS"] == [network.HOST_IP]


def test_kubelets_share_nothing_that_the_one_would_clear_of_the_other() -> None:
    first, second = (yaml.safe_load(node.kubelet_config(each)) for each in (FIRST, SECOND))
    assert (first["cgroupRoot"], second["cgroupRoot"]) == ("/", "/tunesmith-node-1")
    assert first["podLogsDir"] != second["podLogsDir"]
    assert first["containerRuntimeEndpoint"] != second["containerRuntimeEndpoint"]
    assert first["address"] != second["address"]


def test_a_node_is_not_given_up_for_one_late_sign_of_life() -> None:
    renewed_every = yaml.safe_load(node.kubelet_config(FIRST))["nodeLeaseDurationSeconds"] / 4
    assert 5 * renewed_every <= controlplane.NODE_GRACE_SECONDS


def test_there_are_never_fewer_nodes_than_before(tmp_path: Path) -> None:
    paths = Paths(cache=tmp_path, state=tmp_path)
    assert [each.name for each in at_least(paths, 1)] == ["node-0"]
    for each in at_least(paths, 2):
        each.state.mkdir(parents=True)
    assert [each.name for each in existing(paths)] == ["node-0", "node-1"]
    assert len(at_least(paths, 1)) == 2
    assert named(paths, "node-1").index == 1
    with pytest.raises(ClusterError, match="no node is called 'node-2'; there are: node-0, node-1"):
        named(paths, "node-2")
    with pytest.raises(ClusterError, match="0 nodes: it must be 1 to 9"):
        at_least(paths, 0)


def services() -> list[Service]:
    return components.services(PATHS, [FIRST, SECOND], components.MANAGERS)


def test_services_listen_only_where_this_machine_can_reach_them() -> None:
    for service in services():
        assert {address for address, _ in service.listens} <= {"127.0.0.1", FIRST.address, SECOND.address}, service.name


def test_services_share_neither_a_port_nor_a_name() -> None:
    listens = [pair for service in services() for pair in service.listens]
    assert len(listens) == len(set(listens))
    names = [service.name for service in services()]
    assert len(names) == len(set(names))


def test_kubelets_are_stopped_first_and_containerds_last() -> None:
    order = sorted((service.name for service in services()), key=components.stop_order)
    assert {order[0], order[1]} == {"kubelet-node-0", "kubelet-node-1"}
    assert {order[-1], order[-2]} == {"containerd-node-0", "containerd-node-1"}
    for manager in ("kueue", "lws"):
        assert order.index(manager) < order.index("kube-apiserver") < order.index("etcd")


def test_the_audit_log_leaves_out_the_cluster_itself_only() -> None:
    policy = yaml.safe_load(controlplane.audit_policy())
    assert policy["rules"][-1] == {"level": "Metadata"}
    silent = [user for rule in policy["rules"][:-1] for user in rule.get("users", [])]
    assert "system:kube-scheduler" in silent
    assert "admin" not in silent


def test_only_the_administrator_is_a_master() -> None:
    masters = [name for name, who in credentials.CLIENTS.items() if "system:masters" in who.organizations]
    assert masters == ["admin"]


def test_the_addons_bind_each_user_to_a_role_that_exists() -> None:
    objects = addons.manifests(PATHS.volumes)
    roles = {item["metadata"]["name"] for item in objects if item["kind"] in ("ClusterRole", "Role")}
    users = {subject.common_name for subject in credentials.CLIENTS.values()}
    for item in objects:
        if item["kind"].endswith("Binding"):
            assert item["roleRef"]["name"] in roles | {"system:kubelet-api-admin"}
            assert {subject["name"] for subject in item["subjects"]} <= users


def test_there_is_one_default_storage_class_and_its_volumes_are_in_the_state_folder() -> None:
    objects = addons.manifests(PATHS.volumes)
    [storage] = [item for item in objects if item["kind"] == "StorageClass"]
    assert storage["metadata"]["name"] == "standard"
    assert storage["metadata"]["annotations"] == {"storageclass.kubernetes.io/is-default-class": "true"}
    [config] = [item for item in objects if item["kind"] == "ConfigMap"]
    assert json.loads(config["data"]["config.json"]) == {"sharedFileSystemPath": "/state/volumes"}


def test_binaries_are_kept_under_the_hash_of_their_pins() -> None:
    kubectl, kubelet = build.binary(PATHS.cache, "kubectl"), build.binary(PATHS.cache, "kubelet")
    assert kubectl.parent == kubelet.parent
    assert kubectl.parent.parent == Path("/cache/bin")
    assert build.binary(PATHS.cache, "helm").parent != kubectl.parent
    with pytest.raises(ClusterError, match="no binary is called 'kubctl'; there are: argocd, coredns, etcd"):
        build.binary(PATHS.cache, "kubctl")


@pytest.mark.parametrize("module", [*build.MODULES, *build.EXTRAS], ids=lambda module: module.name)
def test_what_is_built_is_what_go_mod_pins(module: build.Module) -> None:
    pins = (module.folder / "go.mod").read_text(encoding="utf-8")
    # These two are built from within, and pin their own parts so.
    assert "\nreplace " not in pins or module.name in ("kubernetes", "argocd")
    for package in module.commands.values():
        assert package == "." or package in pins  # as a `tool` line
    if module.name == "kubernetes":
        assert f"k8s.io/kubernetes v{build.KUBERNETES_VERSION}" in pins
    if module.name == "helm":
        assert f"helm.sh/helm/v4 v{build.HELM_VERSION}" in pins
    if module is build.KUEUE:
        assert f"sigs.k8s.io/kueue v{build.KUEUE_VERSION}" in pins
    if module is build.LWS:
        assert f"sigs.k8s.io/lws v{build.LWS_VERSION}" in pins
