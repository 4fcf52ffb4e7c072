"""The command lines of the processes that serve all nodes, in the order in which they start."""

from __future__ import annotations

from pathlib import Path

import yaml

from tunesmith_cluster import addons, build, credentials, images, network
from tunesmith_cluster.certificates import Subject
from tunesmith_cluster.nodes import Node
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.probes import answers
from tunesmith_cluster.processes import Service

APISERVER = "kube-apiserver"
_LOOPBACK = "127.0.0.1"
_ETCD_PORT, _ETCD_PEER_PORT = 2379, 2380
_DNS_READY_PORT = 8181
NODE_GRACE_SECONDS = 20
"""How long a node may be silent until it is NotReady: six of its kubelet's signs of life may get lost."""


def files(paths: Paths) -> dict[Path, str]:
    """The configuration files of the processes below."""
    return {paths.config / "Corefile": corefile(paths), paths.config / "audit-policy.yaml": audit_policy()}


def corefile(paths: Paths) -> str:
    """The configuration of cluster DNS: it answers at once that nothing exists but the cluster."""
    return f"""\
cluster.local in-addr.arpa {{
  bind {network.HOST_IP}
  errors
  ready {_LOOPBACK}:{_DNS_READY_PORT}
  kubernetes {{
    endpoint {network.API_URL}
    kubeconfig {credentials.kubeconfig(paths, "coredns")}
    pods insecure
    ttl 5
  }}
}}
. {{
  bind {network.HOST_IP}
  errors
  template ANY ANY {{
    rcode NXDOMAIN
  }}
}}
"""


def audit_policy() -> str:
    """Who asked for what, for all but the cluster's own components, which would fill the disk."""
    return yaml.safe_dump(
        {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [
                {"level": "None", "userGroups": ["system:nodes", "system:serviceaccounts:kube-system"]},
                {
                    "level": "None",
                    "users": ["system:apiserver", *(subject.common_name for subject in _components())],
                },
                {"level": "Metadata"},
            ],
        },
        sort_keys=False,
    )


def services_before_nodes(paths: Paths) -> list[Service]:
    """What nodes need, each of which may rely on those before it being ready."""
    return [
        _etcd(paths),
        _apiserver(paths),
        _controller_manager(paths),  # gives up at once if the API server is not ready
        _scheduler(paths),
        _coredns(paths),
    ]


def services_after_nodes(paths: Paths) -> list[Service]:
    """What needs a node. One proxy does: the nodes have one kernel, and with it one packet filter."""
    return [_proxy(paths), _provisioner(paths)]


def _etcd(paths: Paths) -> Service:
    authority, pair = credentials.etcd_authority(paths), credentials.pair(paths, "etcd")
    client, peer = f"https://{_LOOPBACK}:{_ETCD_PORT}", f"https://{_LOOPBACK}:{_ETCD_PEER_PORT}"
    command = [
        str(build.binary(paths.cache, "etcd")),
        f"--data-dir={paths.state / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        "--unsafe-no-fsync",  # nobody keeps anything here that a power cut must not lose
    ]
    for prefix in ("", "peer-"):
        command += [
            f"--{prefix}cert-file={pair.certificate}",
            f"--{prefix}key-file={pair.key}",
            f"--{prefix}trusted-ca-file={authority.certificate}",
            f"--{prefix}client-cert-auth",
        ]
    return Service(
        "etcd",
        command,
        answers(f"{client}/health", authority.certificate, pair),
        listens=[(_LOOPBACK, _ETCD_PORT), (_LOOPBACK, _ETCD_PEER_PORT)],
    )


def _apiserver(paths: Paths) -> Service:
    authority = credentials.authority(paths)
    server = credentials.pair(paths, "apiserver")
    kubelet_client = credentials.pair(paths, "apiserver-kubelet-client")
    etcd = credentials.pair(paths, "etcd")
    front_proxy = credentials.pair(paths, credentials.FRONT_PROXY)
    private, public = credentials.service_account_key(paths)
    command = [
        str(build.binary(paths.cache, "kube-apiserver")),
        f"--etcd-servers=https://{_LOOPBACK}:{_ETCD_PORT}",
        f"--etcd-cafile={credentials.etcd_authority(paths).certificate}",
        f"--etcd-certfile={etcd.certificate}",
        f"--etcd-keyfile={etcd.key}",
        f"--bind-address={network.HOST_IP}",
        f"--advertise-address={network.HOST_IP}",
        f"--secure-port={network.API_PORT}",
        f"--service-cluster-ip-range={network.SERVICE_CIDR}",
        f"--client-ca-file={authority.certificate}",
        f"--tls-cert-file={server.certificate}",
        f"--tls-private-key-file={server.key}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={public}",
        f"--service-account-signing-key-file={private}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=false",
        "--profiling=false",
        f"--kubelet-certificate-authority={authority.certificate}",
        f"--kubelet-client-certificate={kubelet_client.certificate}",
        f"--kubelet-client-key={kubelet_client.key}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--audit-policy-file={paths.config / 'audit-policy.yaml'}",
        f"--audit-log-path={paths.logs / 'audit.log'}",
        "--audit-log-maxsize=200",
        "--audit-log-maxbackup=1",
        f"--requestheader-client-ca-file={credentials.front_proxy_authority(paths).certificate}",
        f"--requestheader-allowed-names={credentials.FRONT_PROXY}",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={front_proxy.certificate}",
        f"--proxy-client-key-file={front_proxy.key}",
    ]
    ready = answers(f"{network.API_URL}/readyz", authority.certificate, credentials.pair(paths, "admin"))
    return Service(APISERVER, command, ready, listens=[(network.HOST_IP, network.API_PORT)])


def _controller_manager(paths: Paths) -> Service:
    authority = credentials.authority(paths)
    config = credentials.kubeconfig(paths, "controller-manager")
    command = [
        str(build.binary(paths.cache, "kube-controller-manager")),
        f"--kubeconfig={config}",
        f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}",
        f"--bind-address={_LOOPBACK}",
        f"--service-account-private-key-file={credentials.service_account_key(paths)[0]}",
        f"--root-ca-file={authority.certificate}",
        f"--cluster-signing-cert-file={authority.certificate}",
        f"--cluster-signing-key-file={authority.key}",
        f"--flex-volume-plugin-dir={paths.volume_plugins}",
        f"--node-monitor-grace-period={NODE_GRACE_SECONDS}s",
        "--node-monitor-period=2s",
        "--use-service-account-credentials",
        "--leader-elect=false",
        "--profiling=false",
    ]
    ready = answers(f"https://{_LOOPBACK}:10257/healthz")
    return Service("kube-controller-manager", command, ready, listens=[(_LOOPBACK, 10257)])


def _scheduler(paths: Paths) -> Service:
    config = credentials.kubeconfig(paths, "scheduler")
    command = [
        str(build.binary(paths.cache, "kube-scheduler")),
        f"--kubeconfig={config}",
        f"--authentication-kubeconfig={config}",
        f"--authorization-kubeconfig={config}",
        f"--bind-address={_LOOPBACK}",
        "--leader-elect=false",
        "--profiling=false",
    ]
    ready = answers(f"https://{_LOOPBACK}:10259/healthz")
    return Service("kube-scheduler", command, ready, listens=[(_LOOPBACK, 10259)])


def _coredns(paths: Paths) -> Service:
    command = [str(build.binary(paths.cache, "coredns")), "-conf", str(paths.config / "Corefile")]
    ready = answers(f"http://{_LOOPBACK}:{_DNS_READY_PORT}/ready")
    return Service("coredns", command, ready, listens=[(network.HOST_IP, 53), (_LOOPBACK, _DNS_READY_PORT)])


def _proxy(paths: Paths) -> Service:
    command = [
        str(build.binary(paths.cache, "kube-proxy")),
        f"--kubeconfig={credentials.kubeconfig(paths, 'proxy')}",
        f"--hostname-override={Node(paths, 0).name}",
        f"--cluster-cidr={network.POD_CIDR}",
        "--proxy-mode=iptables",  # Debian 12's nft is too old for the nftables mode
        # Lets nothing but this machine's own processes reach what listens on its loopback.
        "--iptables-localhost-nodeports=false",
        "--conntrack-max-per-core=0",
        f"--healthz-bind-address={_LOOPBACK}:10256",
        f"--metrics-bind-address={_LOOPBACK}:10249",
    ]
    ready = answers(f"http://{_LOOPBACK}:10256/healthz")
    return Service("kube-proxy", command, ready, listens=[(_LOOPBACK, 10256), (_LOOPBACK, 10249)])


def _provisioner(paths: Paths) -> Service:
    command = [
        str(build.binary(paths.cache, "local-path-provisioner")),
        "start",
        f"--kubeconfig={credentials.kubeconfig(paths, 'local-path-provisioner')}",
        f"--provisioner-name={addons.PROVISIONER}",
        f"--namespace={addons.STORAGE_NAMESPACE}",
        f"--service-account-name={addons.STORAGE_ACCOUNT}",
        f"--configmap-name={addons.STORAGE_CONFIG}",  # it also holds config.json and helperPod.yaml
        f"--helper-image={images.HOST_IMAGE}",
    ]
    return Service("local-path-provisioner", command, lambda: True)


def _components() -> list[Subject]:
    return [subject for name, subject in credentials.CLIENTS.items() if name != "admin"]
