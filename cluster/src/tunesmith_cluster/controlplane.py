"""The command lines of all processes, in the order in which they start."""

from __future__ import annotations

import socket
import ssl
import urllib.request
from collections.abc import Callable
from pathlib import Path

import yaml

from tunesmith_cluster import addons, build, credentials, images, network, node
from tunesmith_cluster.certificates import KeyPair, Subject
from tunesmith_cluster.paths import Paths
from tunesmith_cluster.processes import Service

_LOOPBACK = "127.0.0.1"
_ETCD_PORT, _ETCD_PEER_PORT = 2379, 2380
_DNS_READY_PORT = 8181


def files(paths: Paths) -> dict[Path, str]:
    """The configuration files of the processes below."""
    return {paths.config / "Corefile": corefile(paths), paths.config / "audit-policy.yaml": audit_policy()}


def corefile(paths: Paths) -> str:
    """The configuration of cluster DNS: it answers at once that nothing exists but the cluster."""
    return f"""\
cluster.local in-addr.arpa {{
  bind {network.NODE_IP}
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
  bind {network.NODE_IP}
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


def services(paths: Paths) -> list[Service]:
    """All processes of the cluster, each of which may rely on those before it being ready."""
    return [
        _etcd(paths),
        _apiserver(paths),
        _controller_manager(paths),  # gives up at once if the API server is not ready
        _scheduler(paths),
        _containerd(paths),
        _coredns(paths),
        _kubelet(paths),
        _proxy(paths),
        _provisioner(paths),
    ]


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
        _answers(f"{client}/health", authority.certificate, pair),
        listens=[(_LOOPBACK, _ETCD_PORT), (_LOOPBACK, _ETCD_PEER_PORT)],
    )


def _apiserver(paths: Paths) -> Service:
    authority = credentials.authority(paths)
    server = credentials.pair(paths, "apiserver")
    kubelet_client = credentials.pair(paths, "apiserver-kubelet-client")
    etcd = credentials.pair(paths, "etcd")
    private, public = credentials.service_account_key(paths)
    command = [
        str(build.binary(paths.cache, "kube-apiserver")),
        f"--etcd-servers=https://{_LOOPBACK}:{_ETCD_PORT}",
        f"--etcd-cafile={credentials.etcd_authority(paths).certificate}",
        f"--etcd-certfile={etcd.certificate}",
        f"--etcd-keyfile={etcd.key}",
        f"--bind-address={network.NODE_IP}",
        f"--advertise-address={network.NODE_IP}",
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
    ]
    ready = _answers(f"{network.API_URL}/readyz", authority.certificate, credentials.pair(paths, "admin"))
    return Service("kube-apiserver", command, ready, listens=[(network.NODE_IP, network.API_PORT)])


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
        "--use-service-account-credentials",
        "--leader-elect=false",
        "--profiling=false",
    ]
    ready = _answers(f"https://{_LOOPBACK}:10257/healthz")
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
    ready = _answers(f"https://{_LOOPBACK}:10259/healthz")
    return Service("kube-scheduler", command, ready, listens=[(_LOOPBACK, 10259)])


def _containerd(paths: Paths) -> Service:
    command = ["containerd", "--config", str(paths.config / "containerd.toml")]
    return Service("containerd", command, _accepts(paths.containerd_socket))


def _coredns(paths: Paths) -> Service:
    command = [str(build.binary(paths.cache, "coredns")), "-conf", str(paths.config / "Corefile")]
    ready = _answers(f"http://{_LOOPBACK}:{_DNS_READY_PORT}/ready")
    return Service("coredns", command, ready, listens=[(network.NODE_IP, 53), (_LOOPBACK, _DNS_READY_PORT)])


def _kubelet(paths: Paths) -> Service:
    command = [
        str(build.binary(paths.cache, "kubelet")),
        f"--config={paths.config / 'kubelet.yaml'}",
        f"--kubeconfig={credentials.kubeconfig(paths, 'kubelet')}",
        f"--root-dir={paths.state / 'kubelet'}",
        f"--cert-dir={paths.state / 'kubelet' / 'pki'}",
        f"--hostname-override={credentials.NODE_NAME}",
        f"--node-ip={network.NODE_IP}",
    ]
    ready = _answers(f"http://{_LOOPBACK}:{node.KUBELET_HEALTH_PORT}/healthz")
    listens = [(network.NODE_IP, 10250), (_LOOPBACK, node.KUBELET_HEALTH_PORT)]
    return Service("kubelet", command, ready, listens=listens)


def _proxy(paths: Paths) -> Service:
    command = [
        str(build.binary(paths.cache, "kube-proxy")),
        f"--kubeconfig={credentials.kubeconfig(paths, 'proxy')}",
        f"--hostname-override={credentials.NODE_NAME}",
        f"--cluster-cidr={network.POD_CIDR}",
        "--proxy-mode=iptables",  # Debian 12's nft is too old for the nftables mode
        # Lets nothing but this machine's own processes reach what listens on its loopback.
        "--iptables-localhost-nodeports=false",
        "--conntrack-max-per-core=0",
        f"--healthz-bind-address={_LOOPBACK}:10256",
        f"--metrics-bind-address={_LOOPBACK}:10249",
    ]
    ready = _answers(f"http://{_LOOPBACK}:10256/healthz")
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


def _answers(url: str, ca: Path | None = None, client: KeyPair | None = None) -> Callable[[], bool]:
    """A readiness question: does an HTTP GET succeed?"""

    def ask() -> bool:
        context = ssl.create_default_context(cafile=ca)
        if ca is None:  # the component made its certificate up when it started
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if client is not None:
            context.load_cert_chain(client.certificate, client.key)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(url, timeout=2) as answer:
            return bool(answer.status == 200)

    return ask


def _accepts(path: Path) -> Callable[[], bool]:
    """A readiness question: does somebody listen on this Unix socket?"""

    def ask() -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        return True

    return ask
