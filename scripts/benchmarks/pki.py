"""Certificates for the peers of a run: a hierarchy as `init` makes it, one server, one client."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from estserver.ca.hierarchy import Authority, make_hierarchy
from estserver.files import write_private
from estserver.model import KeyType


@dataclass(frozen=True, slots=True)
class Pki:
    """PEM files; `server` and `client` hold the key, the leaf and the issuing CA's certificate."""

    root: Path
    server: Path
    client: Path


def make_pki(folder: Path) -> Pki:
    """Make a hierarchy of P-256 keys with a server `localhost` and a client."""
    folder.mkdir()
    now = datetime.now(UTC).replace(microsecond=0)
    root, issuing = make_hierarchy("Benchmark", KeyType.EC_P256, now)
    pki = Pki(folder / "root.crt", folder / "server.pem", folder / "client.pem")
    pki.root.write_bytes(root.certificate.public_bytes(Encoding.PEM))
    _write_leaf(pki.server, issuing, "localhost", ExtendedKeyUsageOID.SERVER_AUTH)
    _write_leaf(pki.client, issuing, "printer-17", ExtendedKeyUsageOID.CLIENT_AUTH)
    return pki


def write_holder(
    path: Path, key: ec.EllipticCurvePrivateKey, *certificates: x509.Certificate
) -> None:
    """Write a key and its certificates, leaf first, to one PEM file."""
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_private(path, pem + b"".join(one.public_bytes(Encoding.PEM) for one in certificates))


def _write_leaf(path: Path, issuing: Authority, name: str, usage: x509.ObjectIdentifier) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    now = issuing.certificate.not_valid_before_utc
    authority = issuing.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    leaf = (
        x509.CertificateBuilder()
        .issuer_name(issuing.certificate.subject)
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(authority.value),
            critical=False,
        )
        .sign(issuing.key, hashes.SHA256())
    )
    write_holder(path, key, leaf, issuing.certificate)
