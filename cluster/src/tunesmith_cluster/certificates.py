"""A certificate authority and the certificates it signs (ECDSA P-256, valid for ten years)."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tunesmith_cluster import files

_VALIDITY = datetime.timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A private key and its certificate, as PEM files."""

    key: Path
    certificate: Path

    @classmethod
    def named(cls, folder: Path, name: str) -> KeyPair:
        """The pair called `name` in `folder`, whether it exists or not."""
        return cls(folder / f"{name}.key", folder / f"{name}.crt")

    def exists(self) -> bool:
        """Whether both files are there."""
        return self.key.is_file() and self.certificate.is_file()


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a certificate names: to Kubernetes the common name is a user, the organizations its groups."""

    common_name: str
    organizations: Sequence[str] = ()
    alternative_names: Sequence[str] = ()
    """Host names and IP addresses; empty for a certificate that only a client shows."""


def ensure_authority(pair: KeyPair, common_name: str) -> None:
    """Create a self-signed certificate authority unless it exists."""
    if pair.exists():
        return
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(Subject(common_name))
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(name, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write(pair, key, certificate)


def ensure_signed(pair: KeyPair, subject: Subject, authority: KeyPair) -> None:
    """Create a certificate for `subject`, good for both ends of a connection, unless it exists."""
    if pair.exists():
        return
    issuer = x509.load_pem_x509_certificate(authority.certificate.read_bytes())
    issuer_key = serialization.load_pem_private_key(authority.key.read_bytes(), password=None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(_name(subject), issuer.subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if subject.alternative_names:
        names = [_general_name(name) for name in subject.alternative_names]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    _write(pair, key, builder.sign(issuer_key, hashes.SHA256()))


def ensure_signing_key(private: Path, public: Path) -> None:
    """Create a bare key pair (what service account tokens are signed with) unless it exists."""
    if private.is_file() and public.is_file():
        return
    key = ec.generate_private_key(ec.SECP256R1())
    public_pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _write_file(private, _private_pem(key), 0o600)
    _write_file(public, public_pem, 0o644)


def _builder(subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    # An hour back: a clock that is stepped back after boot must not see certificates from the future.
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + _VALIDITY)
    )


def _name(subject: Subject) -> x509.Name:
    return x509.Name(
        [
            *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group) for group in subject.organizations),
            x509.NameAttribute(NameOID.COMMON_NAME, subject.common_name),
        ]
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    # The SEC 1 form: kube-controller-manager's signer and older clients read it as well as PKCS #8.
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def _write(pair: KeyPair, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    _write_file(pair.key, _private_pem(key), 0o600)
    _write_file(pair.certificate, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _write_file(path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    files.write(path, content, mode)
