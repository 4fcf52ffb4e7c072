"""What is rendered for the node and the control plane."""

import json
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from tunesmith_cluster import ClusterError, Paths, addons, build, controlplane, credentials, network, node

PATHS = Paths(cache=Path("/cache"), state=Path("/state"))


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


def test_everything_containerd_writes_is_in_the_state_folder() -> None:
    config = tomllib.loads(node.containerd_config(PATHS))
    runc = config["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]["runc"]
    written = [config["root"], config["state"], config["grpc"]["address"], runc["options"]["Root"]]
    assert all(path.startswith("/state/") for path in written)
    assert runc["base_runtime_spec"] == "/state/config/base-spec.json"


def test_the_pod_network() -> None:
    bridge, _ = json.loads(node.cni_config(PATHS))["plugins"]
    assert bridge["bridge"] == network.BRIDGE
    assert bridge["ipam"]["ranges"] == [[{"subnet": network.POD_CIDR, "gateway": network.NODE_IP}]]
    assert bridge["ipam"]["dataDir"].startswith("/state/")


def test_the_kubelet() -> None:
    config = yaml.safe_load(node.kubelet_config(PATHS))
    assert config["failCgroupV1"] is False
    assert config["cgroupDriver"] == "cgroupfs"
    assert config["authentication"]["anonymous"] == {"enabled": False}
    assert config["clusterDNS"] == [network.NODE_IP]


def test_services_listen_only_where_this_machine_can_reach_them() -> None:
    for service in controlplane.services(PATHS):
        assert {address for address, _ in service.listens} <= {"127.0.0.1", network.NODE_IP}, service.name


def test_services_do_not_share_a_port() -> None:
    listens = [pair for service in controlplane.services(PATHS) for pair in service.listens]
    assert len(listens) == len(set(listens))


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
    with pytest.raises(ClusterError, match="no binary is called 'kubctl'; there are: coredns, etcd"):
        build.binary(PATHS.cache, "kubctl")


@pytest.mark.parametrize("module", build.MODULES, ids=lambda module: module.name)
def test_what_is_built_is_what_go_mod_pins(module: build.Module) -> None:
    pins = (module.folder / "go.mod").read_text(encoding="utf-8")
    assert "\nreplace " not in pins or module.name == "kubernetes"
    for package in module.commands.values():
        assert package == "." or package in pins  # as a `tool` line
    if module.name == "kubernetes":
        assert f"k8s.io/kubernetes v{build.KUBERNETES_VERSION}" in pins
    if module.name == "helm":
        assert f"helm.sh/helm/v4 v{build.HELM_VERSION}" in pins
