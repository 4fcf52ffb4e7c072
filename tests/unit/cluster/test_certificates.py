"""Certificates say who a component is, and are signed by the right authority."""

import ipaddress
import resource
import signal
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from tunesmith_cluster import Paths, credentials, network
from tunesmith_cluster.certificates import KeyPair
from tunesmith_cluster.nodes import Node, at_least


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    paths = Paths(cache=tmp_path_factory.mktemp("cache"), state=tmp_path_factory.mktemp("state"))
    credentials.ensure_all(paths, at_least(paths, 2))
    return paths


def load(pair: KeyPair) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pair.certificate.read_bytes())


def test_a_component_is_known_by_its_common_name_and_groups(paths: Paths) -> None:
    certificate = load(credentials.pair(paths, Node(paths, 1).kubelet_service))
    assert certificate.subject.rfc4514_string() == "CN=system:node:node-1,O=system:nodes"
    certificate.verify_directly_issued_by(load(credentials.authority(paths)))


def test_etcd_trusts_no_certificate_of_the_cluster(paths: Paths) -> None:
    load(credentials.pair(paths, "etcd")).verify_directly_issued_by(load(credentials.etcd_authority(paths)))
    with pytest.raises((InvalidSignature, ValueError)):
        load(credentials.pair(paths, "kubelet-node-0")).verify_directly_issued_by(
            load(credentials.etcd_authority(paths))
        )


def test_the_api_server_is_reachable_under_its_names(paths: Paths) -> None:
    names = load(credentials.pair(paths, "apiserver")).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    addresses = names.value.get_values_for_type(x509.IPAddress)
    assert {ipaddress.ip_address(network.HOST_IP), ipaddress.ip_address(network.API_SERVICE_IP)} <= set(addresses)
    assert "kubernetes.default.svc" in names.value.get_values_for_type(x509.DNSName)


def test_secrets_are_for_their_owner_only(paths: Paths) -> None:
    secret: list[Path] = [*paths.pki.glob("*.key"), *paths.kubeconfigs.iterdir()]
    assert secret
    assert {path.stat().st_mode & 0o077 for path in secret} == {0}


def test_a_second_run_changes_nothing(paths: Paths) -> None:
    files = [*paths.pki.iterdir(), *paths.kubeconfigs.iterdir()]
    before = {path: path.read_bytes() for path in files}
    credentials.ensure_all(paths, at_least(paths, 2))
    assert {path: path.read_bytes() for path in files} == before


def test_what_a_full_disk_cut_short_is_made_at_the_next_run(tmp_path: Path) -> None:
    """A half-written certificate or kubeconfig counted as there, for ever."""
    paths = Paths(cache=tmp_path / "cache", state=tmp_path / "state")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        for size in (0, 300, 1000):  # that a file may have: not that of a key, a certificate, a kubeconfig
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
            with pytest.raises(OSError, match="too large"):
                credentials.ensure_all(paths, [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    credentials.ensure_all(paths, [])
    assert all(yaml.safe_load(path.read_text())["users"] for path in paths.kubeconfigs.iterdir())
    load(credentials.pair(paths, "apiserver")).verify_directly_issued_by(load(credentials.authority(paths)))


def test_the_kubeconfig_needs_no_other_file(paths: Paths) -> None:
    config = yaml.safe_load(paths.admin_kubeconfig.read_text(encoding="utf-8"))
    assert config["clusters"][0]["cluster"]["server"] == network.API_URL
    assert str(paths.state) not in paths.admin_kubeconfig.read_text(encoding="utf-8")
